"""The commands of the shell, as data: form, summary and help of each. What they do is in the `do_*` modules.

The embedded model is trained to emit these forms; a change here wants one in its recipe.
"""

from __future__ import annotations

from llmasos.syscalls.limits import NICE_MAX, NICE_MIN
from llmasos.userland.shell.grammar import Command, Kind, Option, Param

_PID = Param("PID", Kind.PID)
_TEXT = Param("TEXT", Kind.TEXT)

_NO_THOUGHTS = Option("--no-thoughts", None, "do not print the thoughts of a reasoning model")

_ALL = (
    # --- looking ---
    Command("ps", "list the processes", (Param("PID", Kind.PID, required=False),),
            details="With a PID: that process in detail. Wherever a PID is wanted, the name of a process will do."),
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
        Option("--json", None, "of --found, ls, du and check: print it as JSON"),
        Option("--yes", None, "of rm: remove without asking"),
    ), details="RESIDENT are the weights in memory; FAULTS counts the times that a process wanted to run and found "
               "them evicted. Ctrl-C ends a pull, and the next one goes on where it was."),
    Command("devices", "list the devices and their drivers"),
    Command("stats", "counters since boot"),
    Command("uptime", "how long the kernel has been up"),
    Command("dmesg", "the kernel log", options=(Option("-f", None, "follow: print new lines until Ctrl-C"),)),
    Command("strace", "print the system calls of a process and what they cause",
            (Param("PID", Kind.PID, required=False),),
            (Option("--count", Kind.INTEGER, "stop after this many events"),),
            details="Without PID, or with `all`: every process. Other programs' calls that concern the process are "
                    "shown too. Ctrl-C ends."),
    Command("trace", "print every event of the kernel",
            options=(Option("--count", Kind.INTEGER, "stop after this many events"),), details="Ctrl-C ends."),
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
                Option("--group", Kind.NAME, "control group (default: the shell's own)"),
                Option("--thinking", Kind.NAME, "on, off, or an effort such as low, by its template's switch"),
                _NO_THOUGHTS,
                Option("--detach", None, "let it outlive this script (at a terminal it does)"),
            ), background=True,
            details="Options come before TEXT, which is the rest of the line, `#` included. With & the answer is not "
                    "printed; see it with `cat`."),
    Command("say", "tell a process something and print its answer while it comes", (_PID, _TEXT),
            (Option("--max", Kind.INTEGER, "tokens of this answer at most"), _NO_THOUGHTS), background=True,
            details="TEXT is the rest of the line, `#` included. Ctrl-C interrupts the answer (SIGINT to the process), "
                    "not the shell. With & the process answers in the background."),
    Command("chat", "talk with a process line by line", (_PID,), (_NO_THOUGHTS,),
            details="An empty line or Ctrl-D leaves; Ctrl-C interrupts an answer."),
    Command("cat", "print a process's conversation so far", (_PID,), (
        Option("-f", None, "follow: go on printing until Ctrl-C, or until the process ends"),
        Option("--raw", None, "the text of the token log as it is, with its special tokens"),
    )),
    Command("read", "print the token ids of a process's log", (
        _PID, Param("FROM", Kind.INTEGER, required=False), Param("N", Kind.INTEGER, required=False)),
        details="From position FROM (default 0), N of them (default all)."),
    Command("wait", "wait until a process has nothing to do, or has exited", (_PID,),
            details="Returns at once if the process is idle. An exited child is reaped, and its status printed."),
    # --- control ---
    Command("stop", "stop a process (SIGSTOP)", (_PID,), details="Its context stays; `cont` lets it go on."),
    Command("cont", "let a stopped process go on (SIGCONT)", (_PID,)),
    Command("kill", "send a signal (default TERM)", (Param("SIGNAL", Kind.SIGNAL, required=False, flagged=True), _PID),
            details="SIGNAL is INT, KILL, TERM, CONT, STOP, by name or number. KILL to a driver has it restarted; "
                    "its device's name stands for it, as in `kill -KILL cpu0`."),
    Command("nice", "change a process's share of the device", (_PID, Param("VALUE", Kind.INTEGER)),
            details=f"From {NICE_MIN} (largest share) to {NICE_MAX} (smallest)."),
    Command("migrate", "move a process to another device, as it runs", (_PID, Param("DEVICE", Kind.DEVICE)),
            details="Its answer goes on. Its KV goes along if that device computes in the same way, else its context "
                    "is computed again; `dmesg` says why."),
    Command("exec", "give an idle process another model", (_PID, Param("MODEL", Kind.MODEL)), (
        Option("--dtype", Kind.NAME, "fp32, bf16, int8 or int4 (default: the device's)"),
    ), details="Its context goes along: as tokens if both models have the same vocabulary, else as text, a "
               "conversation by both chat templates."),
    Command("fork", "copy a process, sharing its pages", (_PID, Param("N", Kind.INTEGER, required=False)),
            details="N copies (default 1). Each goes on where the process is; pages are copied when written. The copies "
                    "have its name: tell them apart by pid."),
    Command("compact", "make room in a conversation near its window", (_PID,), (
        Option("--drop", None, "drop the older turns instead of having the model sum them up"),
        Option("--keep", Kind.INTEGER, "turns that stay as they are (default 2)"),
    ), details="Its instructions and last turns stay; the older ones give way to the model's own summary. After an error "
               "the conversation is as it was."),
    Command("limits", "show or set the limits of a process", (_PID,), (
        Option("--context", Kind.INTEGER, "tokens its log may hold"),
        Option("--tokens", Kind.INTEGER, "tokens it may decode in its life"),
        Option("--pages", Kind.INTEGER, "KV pages it may map"),
    ), details="0 takes a limit away."),
    Command("groups", "the tree of control groups: limits, memory, tokens, pressure",
            (Param("PATH", Kind.NAME, required=False),)),
    Command("group", "show a control group; with settings, make it or change it",
            (Param("PATH", Kind.NAME), Param("NAME=VALUE", Kind.WORDS, required=False)),
            (Option("--remove", None, "remove it; it must be empty"),),
            details="Settings are kv_max, kv_high, swap_max, weights_max (sizes), tokens_max (a second), tokens_total, "
                    "pids_max, cpu_weight (1 to 10000, default 100) and kv_action (spill, wait, fail, kill); 0 takes a "
                    "limit away. PATH begins with a slash, or is in the shell's own group."),
    Command("join", "move a process into a control group", (_PID, Param("PATH", Kind.NAME))),
    Command("policy", "show or change the scheduling policy", (Param("NAME", Kind.POLICY, required=False),), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--max-runs", Kind.INTEGER, "processes in one step at most"),
        Option("--step-tokens", Kind.INTEGER, "tokens in one step at most"),
        Option("--victims", Kind.NAME, "which process loses its pages first: cost, lru, fifo, clock"),
        Option("--evictions", Kind.NAME, "which model's weights go first: lru, cost"),
    ), details="fair, fcfs, round_robin, mlfq or lottery; or one of your own, FILE.py:CLASS (docs/policies.md), which "
               "the kernel keeps, checks, and takes out again if it does wrong. Holds from the next step on."),
    Command("pagein", "bring a model into memory", (Param("MODEL", Kind.MODEL),), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--dtype", Kind.NAME, "fp32, bf16, int8 or int4 (default: the device's)"),
    )),
    Command("evict", "take a model that no process uses out of memory", (Param("MODEL", Kind.MODEL),), (
        Option("--device", Kind.DEVICE, "the device (default: the first)"),
        Option("--dtype", Kind.NAME, "which of its dtypes (default: any)"),
        Option("--force", None, "even if processes use it: they keep their KV, and the weights come back on demand"),
    )),
    Command("checkpoint", "write the image of a process to a file", (_PID, Param("FILE", Kind.FILE)), (
        Option("--no-kv", None, "leave the KV out: a small file, a slower restore"),
        Option("--passphrase-file", Kind.FILE, "encrypt with the first line of this file"),
    ), details="The process goes on. An image of that name is replaced, any other file is not."),
    Command("restore", "start a process from an image; it goes on where that one was",
            (Param("FILE", Kind.FILE), Param("NAME", Kind.NAME, required=False)), (
        Option("--model", Kind.MODEL, "its model (default: as in the image)"),
        Option("--device", Kind.DEVICE, "its device (default: as in the image)"),
        Option("--passphrase-file", Kind.FILE, "the passphrase is the first line of this file"),
        Option("--detach", None, "let it outlive this script (at a terminal it does)"),
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
    Command("jobs", "list the answers in the background"),
    Command("clear", "clear the screen"),
    Command("help", "list the commands, or explain one", (Param("COMMAND", Kind.COMMAND, required=False),)),
    Command("exit", "leave the shell", (Param("STATUS", Kind.INTEGER, required=False),),
            details="Agents live on, and the kernel too. Ctrl-D does the same. What a script has spawned ends with it, "
                    "unless that was with --detach."),
    Command("halt", "shut the whole system down, and end all agents"),
)  # fmt: skip

COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Agents", ("spawn", "say", "chat", "cat", "read", "wait", "jobs")),
    (
        "Control",
        (
            "stop",
            "cont",
            "kill",
            "nice",
            "migrate",
            "exec",
            "fork",
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
        ),
    ),
    ("Looking", ("ps", "top", "groups", "models", "devices", "stats", "uptime", "dmesg", "strace", "trace")),
    ("Shell", ("run", "help", "clear", "exit", "halt")),
)
