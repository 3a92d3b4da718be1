"""Requests and the shell command of this system that each asks for. The answer is the command line alone."""
# ruff: noqa: SIM905 (a list of words reads best as a text)

from random import Random

from .case import Case, polite, prompt_key, vary_question
from .words import JOBS, KNOWN_WORDS, syllable_word

_PLAIN: dict[str, tuple[str, ...]] = {
    "ps": (
        "list the processes", "show all processes", "show me what is running", "list running processes",
        "show the process table", "tell me which processes are running", "show me every process", "list all processes",
    ),
    "top": (
        "show the busiest processes", "show live usage", "show me who uses the most tokens", "watch the processes live",
        "show which process is using the device", "show a live view of the processes", "monitor the processes",
    ),
    "models": (
        "list the models", "show the models", "show which models are loaded", "tell me which models there are",
        "show me the available models", "list all installed models",
    ),
    "uptime": (
        "show how long the system has been up", "show the uptime", "tell me how long you have been running",
        "show how long the kernel has run", "tell me the uptime", "tell me when the system was booted",
    ),
    "dmesg": (
        "show the kernel log", "show the kernel messages", "print the boot messages", "read the kernel log",
        "show me what the kernel has logged", "show the system log",
    ),
    "stats": (
        "show the system statistics", "show the statistics", "print the kernel counters",
        "show me the numbers of the system",
        "show memory and token statistics", "give me the system stats",
    ),
    "help": (
        "list the commands", "show the help", "show me the commands of the shell", "tell me which commands there are",
        "open the manual of the shell", "show the list of commands",
    ),
    "exit": (
        "leave the shell", "close the shell", "log me out", "end this session", "quit the shell", "exit the shell",
    ),
    "halt": (
        "shut down the system", "turn the system off", "power off", "halt the system", "shut everything down",
        "stop the whole system", "switch the machine off",
    ),
}  # fmt: skip
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "ps": (
        "Which processes are running?", "What is running?", "What processes are there?", "Who is running right now?",
        "Which processes do we have?", "What is running on the system?", "What is going on in the system?",
    ),
    "top": (
        "Which process is the busiest?", "Which process uses the most tokens?", "Who is using the device?",
        "What is using the device right now?", "Who uses the most memory?",
    ),
    "models": (
        "Which models are loaded?", "What models are there?", "Which models do we have?", "Which models can I use?",
        "What models are installed?",
    ),
    "uptime": (
        "How long has the system been up?", "How long have you been running?", "What is the uptime?",
        "When was the system booted?", "For how long has the kernel been running?", "How long have you been up?",
    ),
    "dmesg": (
        "What does the kernel log say?", "What has the kernel logged?", "What did the kernel say?",
        "What is in the kernel log?",
        "Are there any kernel messages?",
    ),
    "stats": (
        "What are the statistics?", "How busy is the system?", "How is the system doing?", "What do the counters say?",
    ),
    "help": (
        "Which commands are there?", "What commands do you know?", "What can I type here?", "Which commands can I use?",
    ),
    "exit": ("How do I leave the shell?", "How do I get out of here?", "How do I log out?", "How do I quit?"),
    "halt": ("How do I shut down the system?", "How do I turn the system off?", "How do I stop everything?"),
}  # fmt: skip
_WITH_PID: dict[str, tuple[str, ...]] = {
    "stop": (
        "pause {p}", "stop {p}", "suspend {p}", "freeze {p}", "halt {p}", "put {p} on hold", "hold {p}",
        "make {p} pause", "stop {p} for now", "pause {p} for a while",
    ),
    "cont": (
        "continue {p}", "resume {p}", "let {p} go on", "wake up {p}", "unpause {p}", "let {p} continue", "unfreeze {p}",
        "start {p} again", "let {p} run again",
    ),
    "kill": (
        "kill {p}", "end {p}", "terminate {p}", "get rid of {p}", "destroy {p}", "kill off {p}", "remove {p}",
        "put an end to {p}", "shut down {p}",
    ),
    "fork": (
        "fork {p}", "copy {p}", "clone {p}", "duplicate {p}", "make a copy of {p}", "make one more of {p}",
        "create a fork of {p}", "make a clone of {p}",
    ),
    "wait": (
        "wait for {p}", "wait until {p} is done", "wait till {p} ends", "wait for {p} to finish", "wait until {p} exits",
    ),
    "cat": (
        "show the output of {p}", "show what {p} has written", "print the text of {p}", "read the output of {p}",
        "show me the context of {p}", "print what {p} said", "show the text of {p}",
    ),
    "chat": (
        "talk to {p}", "chat with {p}", "open a chat with {p}", "let me talk to {p}", "start a chat with {p}",
        "connect me to {p}", "open a conversation with {p}",
    ),
}  # fmt: skip
_FORK_MANY = (
    "fork {p} {n} times", "make {n} copies of {p}", "clone {p} {n} times", "create {n} forks of {p}",
    "make {n} clones of {p}", "copy {p} {n} times", "duplicate {p} {n} times",
)  # fmt: skip
_NICE = (
    "set the nice value of {p} to {v}", "give {p} a nice value of {v}", "renice {p} to {v}",
    "make the niceness of {p} {v}",
    "set {p} to nice {v}", "change the nice value of {p} to {v}", "give {p} priority {v}",
    "set the priority of {p} to {v}",
    "nice {p} by {v}",
)  # fmt: skip
_SAY = (
    "say {t} to {p}", "tell {p}: {t}", 'tell {p} "{t}"', 'say "{t}" to {p}', "send {t} to {p}", 'send "{t}" to {p}',
    "send {p} the message {t}", "tell {p} {t}", 'write "{t}" to {p}', "send the text {t} to {p}",
)  # fmt: skip
_SPAWN = (
    "start an agent named {a}", "spawn an agent called {a}", "create a new agent named {a}", "spawn {a}",
    "start a new process named {a}", "launch an agent called {a}", "spawn a process called {a}", "start the agent {a}",
    "run an agent named {a}", "launch {a}", "create an agent called {a}",
)  # fmt: skip
_POLICY = (
    "switch to the {s} policy", "use the {s} scheduler", "set the policy to {s}", "change the scheduler to {s}",
    "schedule with {s}", "switch the scheduler to {s}", "use {s} scheduling", "set the scheduling policy to {s}",
    "make the scheduler {s}",
)  # fmt: skip
_POLICIES = {
    "fair": ("fair",), "fcfs": ("fcfs", "first come first served"), "round_robin": ("round_robin", "round robin"),
    "mlfq": ("mlfq", "multilevel feedback queue"), "lottery": ("lottery",),
}  # fmt: skip
_WORDS_FOR_NUMBERS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_OPENERS = ("please", "now", "hello", "good morning", "ok", "hi there", "good work", "well done", "")
_MIDDLES = (
    "keep going|stop writing|try again|write more|start over|read the file|answer in one word|be brief|thank you|"
    "send the result|check the list|work faster|wait for me|finish the job|look at page {n}|use the {w}|find the {w}|"
    "the {w} is ready|bring the {w}|count to {n}|open the {w}|my {w} is {w2}|forget the {w}"
).split("|")


def message(rng: Random) -> str:
    """A short text for one process to be told, without marks at its ends."""
    parts = [rng.choice(_OPENERS), rng.choice(_MIDDLES)] if rng.random() < 0.8 else [_word(rng), _word(rng)]
    text = " ".join(part for part in parts if part)
    return text.format(n=rng.randrange(1, 100), w=_word(rng), w2=_word(rng))


def _word(rng: Random) -> str:
    return rng.choice(KNOWN_WORDS) if rng.random() < 0.75 else syllable_word(rng)


def _pid(rng: Random) -> int:
    return rng.randrange(1, rng.choice((10, 30, 100, 100, 1000, 1000, 10000)))


def command_case(rng: Random) -> Case:
    """A request and its command line; the key is the wording of the request."""
    kind = rng.choice((
        "plain", "plain", "plain", "pid", "pid", "pid", "pid", "pid", "fork", "nice", "say", "say", "spawn", "policy",
    ))  # fmt: skip
    pid = _pid(rng)
    p = rng.choice(("process {}",) * 6 + ("pid {}", "{}", "{}", "number {}", "process number {}", "proc {}")).format(pid)
    if kind == "plain":
        answer = rng.choice(list(_PLAIN))
        request = rng.choice(_PLAIN[answer])
        if rng.random() < 0.3:
            prompt = vary_question(rng, rng.choice(_QUESTIONS[answer]))
            if rng.random() < 0.2:
                prompt = rng.choice(("Tiny, ", "Please tell me: ", "Hey, ")) + prompt[0].lower() + prompt[1:]
            return Case("commands", prompt, answer, prompt_key("command", prompt))
    elif kind == "pid":
        verb = rng.choice(list(_WITH_PID))
        answer, request = f"{verb} {pid}", rng.choice(_WITH_PID[verb]).format(p=p)
    elif kind == "fork":
        spelled = rng.choice(list(_WORDS_FOR_NUMBERS))
        n = _WORDS_FOR_NUMBERS[spelled] if rng.random() < 0.4 else rng.randrange(2, 33)
        said = spelled if n == _WORDS_FOR_NUMBERS[spelled] else str(n)
        answer, request = f"fork {pid} {n}", rng.choice(_FORK_MANY).format(p=p, n=said)
    elif kind == "nice":
        value = rng.randrange(-20, 20)
        answer, request = f"nice {pid} {value}", rng.choice(_NICE).format(p=p, v=value)
    elif kind == "say":
        text = message(rng)
        answer, request = f"say {pid} {text}", rng.choice(_SAY).format(p=p, t=text)
    elif kind == "spawn":
        agent = rng.choice(JOBS) if rng.random() < 0.4 else _word(rng)
        answer, request = f"spawn {agent}", rng.choice(_SPAWN).format(a=agent)
    else:
        policy = rng.choice(list(_POLICIES))
        answer, request = f"policy {policy}", rng.choice(_POLICY).format(s=rng.choice(_POLICIES[policy]))
    prompt = polite(rng, request)
    return Case("commands", prompt, answer, prompt_key("command", prompt))


def bare_command_case(rng: Random) -> Case:
    """A command line typed as it is: the answer is the same line. Practice only."""
    verb = rng.choice([*_PLAIN, *_WITH_PID])
    line = verb if verb in _PLAIN else f"{verb} {_pid(rng)}"
    return Case("bare command", line, line, "bare:" + line)
