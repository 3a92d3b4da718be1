"""Every limit of the ABI in one place, as xv6 keeps its own in param.h."""

PROTOCOL_VERSION = 1
MAX_REQUEST_BYTES = 8 << 20  # one request frame; a million tokens is about 5 MB
MAX_REPLY_BYTES = 64 << 20  # one reply frame
MAX_TOKEN = (1 << 31) - 1  # token ids are non-negative and fit an int32
MAX_TOKENS_PER_CALL = 1 << 20
MAX_STOP_IDS = 64
MAX_LOGPROBS = 64  # alternatives reported per token
MAX_RECORDS = 4096  # records of one process (syscalls.records.LogRecord)
MAX_RECORD_BYTES = 1 << 20  # of these, all together
MAX_RUNS = 4096  # processes of one step
MAX_STEP_TOKENS = 1 << 20  # tokens of one step
MAX_FORK = 256  # children of one fork call
MAX_NAME = 128  # characters of a process or program name
MAX_PATH = 4096
MAX_KEY = 1024  # bytes of a passphrase
MAX_MAPPED = 16  # pids that `models` lists for a model; `processes` counts all
MAX_TICKET = 64  # bytes
MAX_LIST = 1000  # rows of one ps/trace/dmesg answer
MAX_TIMEOUT = 86_400.0  # seconds
MAX_PARKED_CALLS = 4096  # calls of one program waiting in the kernel at once
NICE_MIN, NICE_MAX = -20, 19
MAX_GROUPS = 100_000  # control groups
MAX_SESSION_GROUPS = 1_000  # of those, in the session of one program
MAX_GROUP_DEPTH = 16
MIN_CPU_WEIGHT, MAX_CPU_WEIGHT = 1, 10_000  # of a control group, as in cgroup v2
