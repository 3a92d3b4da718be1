"""The commands of the shell, as data: form, summary and help of each. What they do is in the `do_*` modules.

The parser, `help` and `man`, the verbs of the command line, the completions of bash, zsh and fish, and the list of
commands in docs/shell.md are made of these records.

The embedded model is trained to emit these forms; a change here wants one in its recipe.
"""

from __future__ import annotations

from llmasos.syscalls.limits import MAX_FORK, NICE_MAX, NICE_MIN
from llmasos.userland.shell.grammar import Command, Kind, Option, Param

_PID = Param("PID", Kind.PID)
_AGENT = Param("PID", Kind.AGENT)
_PIDS = Param("PID", Kind.PIDS)
_JOB = Param("JOB", Kind.JOB, required=False)
_TEXT = Param("TEXT", Kind.TEXT)

_NO_THOUGHTS = Option("--no-thoughts", None, "do not print the thoughts of a reasoning model")

_JSON = Option("--json", None, "print it as JSON, in bytes, seconds and full names")
_LISTING = (
    Option("-o", Kind.COLUMNS, "the columns to show, by their headings; +A,B adds to the usual ones"),
    Option("--wide", None, "all columns whole, though lines be longer than the terminal"),
    Option("--sort", Kind.COLUMN, "sort by this column; -COLUMN the other way round"),
    _JSON,
)

_ALL = (
    # --- looking ---
    Command("ps", "list the processes", (Param("PID", Kind.PID, required=False),), (
        Option("--all", None, "agents that have exited, too"),
        *_LISTING,
    ), details="With a PID: that process in detail. Wherever a PID is wanted, the name of a process will do. Of an agent "
               "that has exited the kernel keeps the status for an hour: `wait NAME` tells it."),
    Command("top", "watch processes, device and memory live, or as they were recorded",
            (Param("FILE", Kind.FILE, required=False),), (
        Option("--seconds", Kind.DECIMAL, "seconds between two looks (default 2)"),
        Option("--once", None, "print one look and return"),
        Option("--record", Kind.FILE, "write what is seen into a new file, for `top FILE`"),
    ), details="q or Ctrl-C leaves, ? explains the keys. Without a terminal one look is printed."),
    Command("models", "list the models and their memory; those on disk: ls, du, pull, rm, check",
            (Param("ACTION", Kind.ACTION, required=False), Param("NAME", Kind.MODELS, required=False)), (
        Option("--found", None, "list other programs' models too: Ollama, LM Studio, llama.cpp, Hugging Face"),
        Option("--estimate", Kind.MODEL, "say how much memory a model would take, and which models would have to make "
                                         "room"),
        Option("--dtype", Kind.NAME, "of an estimate: fp32, bf16, int8 or int4 (default: the device's)"),
        Option("--device", Kind.DEVICE, "of an estimate: the device (default: the first)"),
        Option("--context", Kind.INTEGER, "of an estimate: tokens of the context to reckon with"),
        Option("--yes", None, "of rm: remove without asking"),
        *_LISTING,
    ), details="RESIDENT are the weights in memory; FAULTS counts the times that a process wanted to run and found "
               "them evicted. Ctrl-C ends a pull, and the next one goes on where it was."),
    Command("devices", "list the devices and their drivers", options=_LISTING),
    Command("stats", "counters since boot", options=(_JSON,)),
    Command("uptime", "how long the kernel has been up", options=(_JSON,)),
    Command("dmesg", "the kernel log", options=(
        Option("-f", None, "follow: print new lines until Ctrl-C"),
        Option("--json", None, "print each line as an object of JSON"),
    )),
    Command("strace", "print the system calls of a process and what they cause",
            (Param("PID", Kind.PID, required=False),),
            (
                Option("--count", Kind.INTEGER, "stop after this many events"),
                Option("-v", None, "calls that only look (`getinfo`, `ps`, ...) too, and everything whole"),
                Option("--json", None, "print each event as an object of JSON"),
            ),
            details="Without PID, or with `all`: every process. Other programs' calls that concern the process are "
                    "shown too, those that only look are not. An event is one line of a terminal. Ctrl-C ends."),
    Command("trace", "print every event of the kernel", options=(
        Option("--count", Kind.INTEGER, "stop after this many events"),
        Option("--json", None, "print each event as an object of JSON"),
    ), details="Ctrl-C ends."),
    Command("audit", "who did what: the lines of the audit log, and whether they are as they were written",
            (Param("SHOW", Kind.AUDIT),), (
        Option("--last", Kind.INTEGER, "of show: so many lines, from the end"),
        Option("--anchor", Kind.FILE, "of verify: heads of the log that were kept elsewhere"),
        Option("--keys", Kind.FILE, "of verify: the verification keys (default: those beside the log)"),
        Option("--directory", Kind.FILE, "where the log is (default: that of this kernel)"),
        _JSON,
    ), details="`audit show` prints lines, `audit verify` looks at seals, signed heads and anchor; its status is 1 if "
               "something is wrong. What it finds, and what it cannot, is in docs/audit.md."),
    Command("inventory", "what the kernel consists of and has loaded, by digest", options=_LISTING,
            details="Package, native library and models, as kernel and drivers report it of themselves. That is no "
                    "attestation: `llmasos verify` looks at an installation from another one."),
    # --- agents ---
    Command("spawn", "start an agent; with TEXT it answers at once",
            (Param("NAME", Kind.NAME), Param("TEXT", Kind.TEXT, required=False)),
            (
                Option("--model", Kind.MODEL, "a known name, a directory, or a hub name (default: the kernel's)"),
                Option("--nice", Kind.INTEGER, f"{NICE_MIN} (most) to {NICE_MAX} (least)"),
                Option("--system", Kind.TEXT, "system prompt; quote it"),
                Option("--temperature", Kind.DECIMAL, "0 is greedy (default: as the model's makers advise, else 0)"),
                Option("--seed", Kind.INTEGER, "seed of the sampler"),
                Option("--max", Kind.INTEGER, "tokens of each answer at most"),
                Option("--tokens", Kind.INTEGER, "tokens it may decode in its life"),
                Option("--dtype", Kind.NAME, "fp32, bf16, int8 or int4 (default: the device's)"),
                Option("--device", Kind.DEVICE, "the device (default: the first)"),
                Option("--group", Kind.GROUP, "control group (default: the shell's own)"),
                Option("--thinking", Kind.NAME, "on, off, or an effort such as low, by its template's switch"),
                _NO_THOUGHTS,
                Option("--detach", None, "let it outlive this script (at a terminal it does)"),
                _JSON,
            ), background=True,
            of_verb="TEXT may be in one word or several, with options before and behind it. What the verb starts lives "
                    "on. Ctrl-C interrupts the answer.",
            details="Options come before TEXT, which is the rest of the line, `#` included, or is in quotes. What comes "
                    "in by a pipe is said behind it. With & the answer is not printed; see it with `cat`."),
    Command("say", "tell a process something and print its answer while it comes", (_AGENT, _TEXT),
            (Option("--max", Kind.INTEGER, "tokens of this answer at most"), _NO_THOUGHTS, _JSON), background=True,
            of_verb="TEXT may be in one word or several, and is read from standard input if there is none. Ctrl-C "
                    "interrupts the answer. Where the verb is stopped, or ended by another signal, the agent goes on, "
                    "and `llmasos cat -f PID` shows what it says.",
            details="TEXT is the rest of the line, `#` included, or is in quotes; what comes in by a pipe is said behind "
                    "it. Ctrl-C interrupts the answer (SIGINT to the process), not the shell; Ctrl-Z stops it, and `fg` "
                    "goes on with it. With & the process answers in the background."),
    Command("chat", "talk with a process line by line", (_AGENT,), (_NO_THOUGHTS,),
            details="An empty line or Ctrl-D leaves; Ctrl-C interrupts an answer."),
    Command("cat", "print a process's conversation so far, or files", (
        Param("PID", Kind.AGENT, required=False), Param("FILE", Kind.WORDS, required=False)), (
        Option("-f", None, "follow: go on printing until Ctrl-C, or until the process ends"),
        Option("--raw", None, "the text of the token log as it is, with its special tokens"),
        _JSON,
    ), details="A PID with a slash in it is the path of a file (`cat ./a.txt ./b.txt`), and `-`, or none at all, what "
               "comes in by a pipe or from a file; at a terminal, what is typed up to Ctrl-D."),
    Command("read", "print the token ids of a process's log, or read a line into variables", (
        Param("PID", Kind.AGENT, required=False), Param("FROM", Kind.WORDS, required=False)), (
        Option("-r", None, "read a line, in which a backslash is a character"),
        Option("-p", Kind.NAME, "read a line from the person, after this prompt"),
        _JSON,
    ), details="`read PID FROM N` prints N of them (default all) from position FROM (default 0). With an input (a pipe, "
               "`< ./f`), and with -r or -p, `read NAME...` reads a line of it into variables, as any shell does: `while "
               "read -r name rest; do ...; done < ./f`. The status is 1 where there are no more lines. What is read by "
               "lines is no text for `say` and `spawn`."),
    Command("wait", "wait until processes have nothing to do, or have exited",
            (Param("PID", Kind.PIDS, required=False),), (_JSON,),
            details="One after the other; returns at once if a process is idle. An exited child is reaped, and its "
                    "status printed. Without PID: until all jobs have ended; with %N: until that job has."),
    # --- control ---
    Command("stop", "stop processes (SIGSTOP)", (_PIDS,), details="Their contexts stay; `cont` lets them go on."),
    Command("cont", "let stopped processes go on (SIGCONT)", (_PIDS,)),
    Command("kill", "send a signal (default TERM)", (Param("SIGNAL", Kind.SIGNAL, required=False, flagged=True), _PIDS), (
        Option("-s", Kind.SIGNAL, "the signal, as `-SIGNAL` has it"),
        Option("-l", None, "list the signals", alone=True),
        Option("--shred", None, "end agents and destroy what they have said: log, KV, and the keys of both on the disk"),
    ),
            details="To each PID, %N or name; the status is 1 if one of several could not be sent. "
                    "SIGNAL is INT, KILL, TERM, CONT, STOP, by name or number. KILL to a driver has it restarted; "
                    "its device's name stands for it, as in `kill -KILL cpu0`. --shred says what is gone, and what "
                    "could not be reached: forks, and whoever has read it, keep what they have."),
    Command("nice", "change a process's share of the device", (_PID, Param("VALUE", Kind.INTEGER)), (
        Option("-n", Kind.INTEGER, "the value, before the process, as nice(1) has it", alone=True),
    ), details=f"From {NICE_MIN} (largest share) to {NICE_MAX} (smallest)."),
    Command("realtime", "give a process a part of its device's time before all others", (_AGENT,), (
        Option("--budget", Kind.DECIMAL, "seconds of the device's time (default: 0.01)"),
        Option("--period", Kind.DECIMAL, "in each so many seconds (default: 0.1)"),
        Option("--off", None, "make it FAIR again"),
    ), details="When the budget is used up the process is FAIR until the next period, and what it used beyond comes off "
               "that one. A device takes budgets up to 0.8 of its time together. It needs the right PRIORITY. `ps -o "
               "name,class,budget` shows it."),
    Command("migrate", "move a process to another device, as it runs", (_AGENT, Param("DEVICE", Kind.DEVICE)), (_JSON,),
            details="Its answer goes on. Its KV goes along if that device computes in the same way, else its context "
                    "is computed again; `dmesg` says why."),
    Command("exec", "give an idle process another model", (_AGENT, Param("MODEL", Kind.MODEL)), (
        Option("--dtype", Kind.NAME, "fp32, bf16, int8 or int4 (default: the device's)"),
        _JSON,
    ), details="Its context goes along: as tokens if both models have the same vocabulary, else as text, a "
               "conversation by both chat templates."),
    Command("fork", "copy a process, sharing its pages", (_AGENT, Param("N", Kind.INTEGER, required=False)), (
        Option("--name", Kind.NAME, "their name; several are called NAME-1, NAME-2, ..."),
        Option("--detach", None, "let them outlive this script (at a terminal they do)"),
        _JSON,
    ), details=f"N copies (default 1, at most {MAX_FORK}). Each goes on where the process is; pages are copied when "
               "written. Without --name the copies have its name: tell them apart by pid."),
    Command("rename", "give a process another name", (_AGENT, Param("NAME", Kind.NAME))),
    Command("compact", "make room in a conversation near its window", (_AGENT,), (
        Option("--drop", None, "drop the older turns instead of having the model sum them up"),
        Option("--keep", Kind.INTEGER, "turns that stay as they are (default 2)"),
    ), details="Its instructions and last turns stay; the older ones give way to the model's own summary. After an error "
               "the conversation is as it was."),
    Command("limits", "show or set the limits of a process", (_AGENT,), (
        Option("--context", Kind.INTEGER, "tokens its log may hold"),
        Option("--tokens", Kind.INTEGER, "tokens it may decode in its life"),
        Option("--pages", Kind.INTEGER, "KV pages it may map"),
        _JSON,
    ), details="0 takes a limit away."),
    Command("grant", "hand rights on an agent, or on a group's, to another user", (
        Param("PID", Kind.AGENT), Param("WHO", Kind.NAME), Param("RIGHT", Kind.WORDS, required=False)), (
        Option("--for", Kind.TIME, "until so much time has passed: 30m, 12h, 7d"),
        _JSON,
    ),
            details="WHO is a user of the machine, by name or id, or that and a tenant (`1002/acme`). RIGHT is read (the "
                    "default), control, limits or see, several if need be. Prints a ticket, which is good once, in a "
                    "shell or program of WHO: `accept TICKET`. What you were granted yourself you can pass on, as much "
                    "of it or less, and for no longer. A PID with a slash in it is the path of a control group: the "
                    "grant is on all agents that are in it, or in a group in it, at any time until it ends. Time goes "
                    "on while no kernel runs."),
    Command("sandbox", "run a program of the host that reaches what it is granted, and nothing else",
            (Param("COMMAND", Kind.WORDS),), (
        Option("--grant", Kind.NAME, "AGENT:RIGHTS or /GROUP:RIGHTS (read,control where none stand), several times",
               many=True),
        Option("--read", Kind.FILE, "a path that it may read, several times", many=True),
        Option("--write", Kind.FILE, "a path that it may change, several times", many=True),
        Option("--dir", Kind.FILE, "the directory in which it starts"),
        Option("--net", None, "let it use the network"),
    ), passes=True, details="Options stand before COMMAND, behind `--` if that begins with a dash. The operating system "
                            "holds it, with all that it starts (bubblewrap; `pip install 'llmasos[sandbox]'`): it sees "
                            "the system's programs, this Python, an empty /tmp and what the options name, no network, no "
                            "process of others, and of the kernel a socket at which it is confined to its grants. "
                            "`llmasos` works in it, with these. It ends with this command, whose status is its own. "
                            "Where the machine cannot do that nothing is run (ENOTSUP says why)."),
    Command("accept", "take what a ticket of `grant` gives", (Param("TICKET", Kind.NAME),),
            details="The agent is there from then on, as `ps` shows it (`1001:7`), until the shell ends or the grant is "
                    "taken back. A program does the same by `system.accept(ticket)`."),
    Command("grants", "rights that you have handed on, or were handed", options=_LISTING,
            details="OF is the grant that one was made of."),
    Command("revoke", "take grants back, and all that was made of them", (Param("HANDLE", Kind.WORDS),),
            details="By the handles that `grants` lists. Calls that wait by them fail at once; what was read "
                    "stays read."),
    Command("groups", "the tree of control groups: limits, memory, tokens, pressure",
            (Param("PATH", Kind.GROUP, required=False),), _LISTING),
    Command("group", "show a control group; with settings, make it or change it",
            (Param("PATH", Kind.GROUP), Param("NAME=VALUE", Kind.WORDS, required=False)),
            (Option("--remove", None, "remove it; it must be empty"), _JSON),
            details="Settings are kv_max, kv_high, swap_max, weights_max (sizes), tokens_max (a second), tokens_total, "
                    "pids_max, cpu_weight (1 to 10000, default 100), kv_action (spill, wait, fail, kill) and "
                    "share_prefixes (yes, no); 0 takes a limit away. PATH begins with a slash, or is in the shell's own "
                    "group, which ends with it; that of a verb is in the user's, /users/NAME."),
    Command("join", "move a process into a control group", (_PID, Param("PATH", Kind.GROUP))),
    Command("policy", "show or change the scheduling policy", (Param("NAME", Kind.POLICY, required=False),), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--max-runs", Kind.INTEGER, "processes in one step at most"),
        Option("--step-tokens", Kind.INTEGER, "tokens in one step at most"),
        Option("--victims", Kind.NAME, "which process loses its pages first: cost, lru, fifo, clock"),
        Option("--evictions", Kind.NAME, "which model's weights go first: lru, cost"),
        _JSON,
    ), details="fair, fcfs, round_robin, mlfq or lottery; or one of your own, FILE.py:CLASS (docs/policies.md), which "
               "the kernel keeps, checks, and takes out again if it does wrong. Holds from the next step on."),
    Command("pagein", "bring a model into memory", (Param("MODEL", Kind.MODEL),), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--dtype", Kind.NAME, "fp32, bf16, int8 or int4 (default: the device's)"),
        _JSON,
    )),
    Command("evict", "take a model that no process uses out of memory", (Param("MODEL", Kind.MODEL),), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--dtype", Kind.NAME, "which of its dtypes (default: any)"),
        Option("--force", None, "even if processes use it: they keep their KV, and the weights come back on demand"),
    )),
    Command("checkpoint", "write the image of a process to a file", (_AGENT, Param("FILE", Kind.FILE)), (
        Option("--no-kv", None, "leave the KV out: a small file, a slower restore"),
        Option("--passphrase-file", Kind.FILE, "encrypt with the first line of this file"),
        _JSON,
    ), details="The process goes on. An image of that name is replaced, any other file is not."),
    Command("restore", "start a process from an image; it goes on where that one was",
            (Param("FILE", Kind.FILE), Param("NAME", Kind.NAME, required=False)), (
        Option("--model", Kind.MODEL, "its model (default: as in the image)"),
        Option("--device", Kind.DEVICE, "its device (default: as in the image)"),
        Option("--passphrase-file", Kind.FILE, "the passphrase is the first line of this file"),
        Option("--detach", None, "let it outlive this script (at a terminal it does)"),
        _JSON,
    ), details="Its name is NAME, or that in the image. KV that cannot be trusted is computed again; `dmesg` says why."),
    Command("advise", "say how a model will be used", (
        Param("MODEL", Kind.MODEL), Param("ADVICE", Kind.ADVICE)), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--dtype", Kind.NAME, "fp32, bf16, int8 or int4 (default: the device's)"),
    ), details="willneed loads it in the background, unless a running model would have to make room; dontneed lets it "
               "go first, at once if no process uses it; pin loads it and keeps it; normal takes the advice back."),
    # --- the shell ---
    Command("run", "run a Python program", (Param("FILE", Kind.FILE), Param("ARGS", Kind.WORDS, required=False)),
            details="In a process of its own, attached to this kernel by LLMASOS_RUNTIME."),
    Command("jobs", "list what is in the background, or stopped", options=_LISTING,
            details="A line each: an agent that answers, or a pipeline that this shell carries. %1 names one, as in "
                    "`fg %1`."),
    Command("fg", "go on with a job in the foreground", (_JOB,),
            details="JOB is %N, a PID or a name (default: the newest). Of an answer the rest is printed while it comes."),
    Command("bg", "let a stopped job go on in the background", (_JOB,),
            details="JOB is %N, a PID or a name (default: the newest)."),
    Command("disown", "let agents outlive this shell", (Param("PID", Kind.PIDS, required=False),),
            details="For scripts, whose agents end with them. A pipeline cannot be disowned: this shell carries it."),
    Command("watch", "run a command again and again", (Param("COMMAND", Kind.WORDS),), (
        Option("-n", Kind.DECIMAL, "seconds between two runs (default 2)"),
        Option("--count", Kind.INTEGER, "end after so many runs"),
    ), passes=True, details="Options stand before COMMAND. With a pipe in it, in quotes: `watch 'ps | grep alice'`. "
                             "Ctrl-C ends."),
    Command("history", "list the lines of this session and earlier ones", (Param("N", Kind.INTEGER, required=False),),
            details="The last N (default 50). Ctrl-R searches them."),
    Command("source", "run the commands of a file in this shell",
            (Param("FILE", Kind.FILE), Param("ARGS", Kind.WORDS, required=False)),
            details="Its variables, functions and aliases stay. `.` is short for it."),
    Command("alias", "give a command a short name; alone, list them",
            (Param("NAME=COMMAND", Kind.WORDS, required=False),),
            details="As in `alias ll='ps'`. It holds from the next line on."),
    Command("unalias", "take an alias back", (Param("NAME", Kind.WORDS),)),
    Command("set", "set a switch, or the arguments; alone, list the variables",
            (Param("SWITCH", Kind.WORDS, required=False),),
            details="-e: a command that fails ends the shell; -u: so does a variable that is not set; -x: commands are "
                    "shown before they run; -o pipefail: a pipeline has the status of the last member that failed; + "
                    "takes one back. `set -- A B` sets $1, $2."),
    Command("unset", "forget variables and functions", (Param("NAME", Kind.WORDS),)),
    Command("export", "give variables to the programs that are started here", (Param("NAME=VALUE", Kind.WORDS),)),
    Command("shift", "drop the first N arguments (default 1)", (Param("N", Kind.INTEGER, required=False),)),
    Command("cd", "go to another directory", (Param("DIRECTORY", Kind.FILE, required=False),),
            details="Without one home; `cd -` goes back. A subshell, `(cd ./x; ...)`, goes alone."),
    Command("pwd", "print the working directory", options=(
        Option("-P", None, "its real path, without symbolic links"),
    )),
    Command("local", "variables of a function's own", (Param("NAME=VALUE", Kind.WORDS),),
            details="They are as they were when the function ends."),
    Command("eval", "run words as a line of the shell", (Param("WORD", Kind.WORDS, required=False),)),
    Command("trap", "run commands at the end of the shell, or at Ctrl-C",
            (Param("COMMANDS", Kind.WORDS, required=False),),
            details="`trap 'COMMANDS' EXIT INT`; alone, list them. `trap - INT` takes it back, and `trap '' INT` has "
                    "Ctrl-C ignored. A subshell has its own."),
    Command("echo", "print words", (Param("WORD", Kind.WORDS, required=False),),
            details="-n: without the end of the line; -e: `\\t`, `\\n` and their like are characters."),
    Command("type", "say what words are as commands", (Param("NAME", Kind.WORDS),)),
    Command("command", "`command -v NAME`: say what a word is as a command", (Param("NAME", Kind.WORDS),)),
    Command("true", "succeed; `:` is short for it", (Param("WORD", Kind.WORDS, required=False),)),
    Command("false", "fail", (Param("WORD", Kind.WORDS, required=False),)),
    Command("break", "leave N loops (default 1)", (Param("N", Kind.INTEGER, required=False),)),
    Command("continue", "go on with the next turn of a loop", (Param("N", Kind.INTEGER, required=False),)),
    Command("return", "leave a function, or a file that is read", (Param("STATUS", Kind.INTEGER, required=False),)),
    Command("clear", "clear the screen"),
    Command("help", "list the commands, or explain one", (Param("COMMAND", Kind.TOPIC, required=False),)),
    Command("man", "the manual: of a command, a system call, or an error",
            (Param("TOPIC", Kind.TOPIC, required=False), Param("NAME", Kind.TOPIC, required=False)), (
        Option("-k", Kind.NAME, "list the pages that this word is in, as apropos(1) does"),
    ),
            details="As in `man fork`, `man EBUSY`; `man 2 fork` is the same. "
                    "Where a command and a system call have one name, both are shown."),
    Command("exit", "leave the shell", (Param("STATUS", Kind.INTEGER, required=False),),
            details="Agents live on, and the kernel too. Ctrl-D and `quit` do the same. What a script has spawned ends "
                    "with it, unless that was with --detach, or it was disowned."),
    Command("halt", "shut the whole system down, and end all agents", options=(
        Option("--keep", None, "leave them to the next kernel"),
        Option("--yes", None, "without asking"),
    ), details="At a terminal it asks, if agents live."),
)  # fmt: skip

COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Agents", ("spawn", "say", "chat", "cat", "read", "wait", "jobs", "fg", "bg", "disown")),
    (
        "Control",
        (
            "stop",
            "cont",
            "kill",
            "nice",
            "realtime",
            "migrate",
            "exec",
            "fork",
            "rename",
            "compact",
            "limits",
            "group",
            "join",
            "policy",
            "pagein",
            "evict",
            "advise",
            "checkpoint",
            "restore",
            "grant",
            "accept",
            "revoke",
            "sandbox",
        ),
    ),
    (
        "Looking",
        (
            "ps",
            "top",
            "groups",
            "grants",
            "models",
            "devices",
            "stats",
            "uptime",
            "dmesg",
            "strace",
            "trace",
            "audit",
            "inventory",
        ),
    ),
    ("Shell", ("run", "watch", "history", "alias", "unalias", "source", "help", "man", "clear", "exit", "halt")),
    (
        "Language",
        (
            "cd",
            "pwd",
            "set",
            "unset",
            "export",
            "local",
            "shift",
            "eval",
            "trap",
            "type",
            "command",
            "echo",
            "true",
            "false",
            "break",
            "continue",
            "return",
        ),
    ),
)

# Those that are no verbs of the command line: they are about a shell or a script, or (halt) are a verb of their own.
SHELL_ONLY = frozenset(
    {"accept", "jobs", "fg", "bg", "history", "source", "alias", "unalias", "clear", "exit", "halt", *GROUPS[-1][1]}
)

# The verbs that are no commands of the shell, with their summaries and words.
OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "boot": ("boot a kernel", ("--detach", "--device", "--config", "--policy", "--model", "--journal", "--no-journal")),
    "shell": ("open a shell", ("--private",)),
    "status": ("what kernel runs where", ("--json",)),
    "halt": ("shut the running kernel down", ("--keep",)),
    "demo": ("a guided tour", ("--here", "--fast")),
    "verify": ("is another installation the same as this one?", ("--json",)),
    "seal": ("the keys of journal and process images", ("status", "rotate", "load")),
    "shred": ("destroy process images, or all that an owner has said", ("--system",)),
    "key": ("who may come from other machines", ("new", "trust", "server", "add", "list", "revoke")),
    "doctor": ("what this machine can and cannot do", ("--json",)),
    "completion": ("print a script that completes llmasos", ("bash", "zsh", "fish")),
}

# Lines that people may type, with what they do; of commands whose form does not say it all.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "ps": (
        ("ps -o PID,TOKENS,NAME --sort -TOKENS", "those with the longest contexts first"),
        ("ps --json", "every field of every process, for a program"),
        ("ps alice", "everything of one process"),
    ),
    "audit": (
        ("audit show --last 20", "what was done last, and by whom"),
        ("audit verify --anchor /mnt/elsewhere/heads", "is it as it was written?"),
    ),
    "models": (
        ("models pull org/name", "fetch a model from the hub"),
        ("models --estimate org/name --context 4096", "the memory that it would take"),
    ),
    "strace": (("strace alice", "what is asked of alice, and what becomes of it"), ("strace -v --count 20 all", "all")),
    "spawn": (
        ("spawn alice", "an agent on the kernel's own model"),
        ("spawn bob --model org/name --temperature 0.7 Write a haiku.", "one that answers at once"),
    ),
    "say": (("say alice what's my name?", "a question, with an apostrophe in it"),),
    "cat": (("cat -f alice", "go on with what she says"),),
    "kill": (
        ("kill alice", "end a process"),
        ("kill -INT alice", "interrupt its answer"),
        ("kill ann ben 7", "several"),
        ("kill -KILL cpu0", "restart a driver"),
        ("kill --shred alice", "end an agent, and destroy what it has said"),
    ),
    "fork": (("fork alice 3 --name poet", "three copies: poet-1, poet-2 and poet-3"),),
    "rename": (("rename 7 critic", "by pid, where several have one name"),),
    "limits": (("limits alice --tokens 5000", "it may decode 5,000 tokens in its life"),),
    "groups": (("groups /guests --wide", "a group and those below it"),),
    "group": (
        ("group guests kv_max=64MiB cpu_weight=50", "make a group, or change it"),
        ("group guests --remove", "remove it, once it is empty"),
    ),
    "grant": (("grant alice 1002 read control", "user 1002 may read what she says, and talk with her"),),
    "sandbox": (
        (
            "sandbox --grant alice --read ./work --dir ./work -- python3 tool.py",
            "./work/tool.py talks with alice, and reads ./work",
        ),
    ),
    "revoke": (("revoke 3", "take a grant back, and all that was made of it"),),
    "policy": (("policy lottery", "from the next step on"), ("policy --max-runs 8", "at most 8 processes in a step")),
    "checkpoint": (("checkpoint alice alice.img", "to be restored later, or elsewhere"),),
    "restore": (("restore alice.img twin", "under another name"),),
    "run": (("run agent.py --fast", "the words behind the file are the program's"),),
    "man": (("man fork", "the command and the system call"), ("man EBUSY", "an error")),
}
