"""The shell's command language: what lines mean, and what is said about lines that mean nothing."""

from __future__ import annotations

import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.userland.shell.do_control import signal_named
from llmasos.userland.shell.grammar import Line, Scanner, UsageError, parse
from llmasos.userland.shell.main import DO
from llmasos.userland.shell.words import COMMANDS, GROUPS


def read(text: str) -> Line:
    line = parse(text, COMMANDS)
    assert line is not None
    return line


@pytest.mark.parametrize("text", ["", "   ", "# a comment", "  # ps"])
def test_empty_lines_and_comments_mean_nothing(text: str) -> None:
    assert parse(text, COMMANDS) is None


@pytest.mark.parametrize(
    "text",
    [
        "ps", "top", "models", "uptime", "dmesg", "policy", "policy fair", "stop 3", "cont 3", "kill 3", "kill -9 3",
        "nice 3 -5", "fork 3", "fork 3 4", "wait 3", "cat 3", "say 3 hello there", "spawn alice", "chat 3", "exit",
        "help", "stats", "halt", "run file.py",
    ],
)  # fmt: skip
def test_every_form_the_embedded_model_is_trained_to_emit_is_read(text: str) -> None:
    assert read(text).command.name == text.split()[0]


def test_every_command_is_done_and_listed_in_help_exactly_once() -> None:
    assert set(DO) == set(COMMANDS)
    listed = [name for _, names in GROUPS for name in names]
    assert sorted(listed) == sorted(COMMANDS)


def test_the_text_of_say_is_the_rest_of_the_line_as_it_stands() -> None:
    line = read("say 3   What's   my name? It's --not an option; echo | cat # no comment")
    assert line.text("PID") == "3"
    assert line.text("TEXT") == "What's   my name? It's --not an option; echo | cat # no comment"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ps # all of them", "ps"),
        ("stop 6        # this copy only", "stop 6"),
        ("stop 6 #this copy", "stop 6"),
        ("kill -9 3 # 'tis over", "kill -9 3"),
        ("fork 3 2\t# twins", "fork 3 2"),
        ("top --once # a look", "top --once"),
        ("run agent.py a b # c", "run agent.py a b"),
        ("group guests kv_max=8M # for now", "group guests kv_max=8M"),
        ("exit # bye", "exit"),
    ],
)
def test_a_comment_may_stand_behind_a_command_that_takes_no_text(text: str, same: str) -> None:
    assert read(text) == read(same)


def test_a_number_sign_inside_of_a_word_or_of_quotes_begins_no_comment() -> None:
    assert read("stop fox#2").words == ["fox#2"]
    assert read("run agent.py '#1' \"# 2\" # 3").words == ["#1", "# 2"]
    assert read("restore 'a # b.img' bob # c").text("FILE") == "a # b.img"


def test_a_value_is_not_taken_from_a_comment() -> None:
    with pytest.raises(UsageError, match=r"--seconds wants a value"):
        read("top --seconds # 2")
    with pytest.raises(UsageError, match="stop needs PID"):
        read("stop # 3")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.takes_text])
def test_the_text_of_a_command_keeps_its_number_signs_and_its_help_says_so(name: str) -> None:
    assert read(f"{name} 3 # is a number sign").text("TEXT") == "# is a number sign"
    assert "`#` included" in COMMANDS[name].details


def test_quotes_around_the_whole_text_are_taken_off_and_others_stay() -> None:
    assert read('say 3 "hello there"').text("TEXT") == "hello there"
    assert read('say 3 "yes" and "no"').text("TEXT") == '"yes" and "no"'
    assert read("say 3 'tis").text("TEXT") == "'tis"


def test_options_of_spawn_stand_before_its_text() -> None:
    line = read("spawn bob --model tiny --nice -5 --system 'You are Bob.' --temperature=0.7 --max 40 tell --nice things")
    assert line.text("NAME") == "bob"
    assert line.text("--model") == "tiny"
    assert line.integer("--nice", 0) == -5
    assert line.text("--system") == "You are Bob."
    assert line.decimal("--temperature", 0.0) == 0.7
    assert line.integer("--max", 0) == 40
    assert line.text("TEXT") == "tell --nice things"


def test_an_ampersand_of_its_own_sends_say_and_spawn_to_the_background() -> None:
    line = read("say 3 salt & pepper &")
    assert line.background
    assert line.text("TEXT") == "salt & pepper"
    assert not read("say 3 me and AT&T&").background
    assert read("spawn alice &").background


def test_a_command_that_cannot_run_in_the_background_refuses_an_ampersand() -> None:
    with pytest.raises(UsageError, match="nothing was expected at '&'"):
        read("ps 3 &")


def test_a_negative_number_is_a_value_and_not_an_option() -> None:
    assert read("nice 3 -20").integer("VALUE", 0) == -20


def test_the_signal_of_kill_may_stand_on_either_side_of_the_pid() -> None:
    for text in ("kill -STOP 3", "kill 3 -STOP"):
        assert (read(text).text("SIGNAL"), read(text).words) == ("STOP", ["3"])


@pytest.mark.parametrize("word", ["9", "KILL", "SIGKILL", "kill"])
def test_a_signal_is_named_as_anywhere(word: str) -> None:
    assert signal_named(word) is Signal.KILL


def test_an_unknown_signal_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no signal 'HUP'.*KILL \(9\)"):
        signal_named("HUP")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pss", "no command 'pss'; did you mean 'ps'"),
        ("what is my name?", "no command 'what'"),
        ("say 3", r"say needs TEXT\. Usage: say PID \[--max N\] \[--no-thoughts\] \[--json\] TEXT"),
        ("nice", "nice needs PID and VALUE"),
        ("spawn", "spawn needs NAME"),
        ("rename 3 4 5", "nothing was expected at '5'"),
        ("spawn a --colour red", "spawn has no option --colour; its options: --model"),
        ("spawn a --model", r"--model wants a value \(MODEL\)"),
        ('spawn a --system "never closed', 'quote " is not closed'),
        ("cat -f=3 5", "-f takes no value"),
    ],
)
def test_a_wrong_line_is_refused_with_what_was_wanted(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        read(text)
    assert refused.value.errno is Errno.EINVAL


@pytest.mark.parametrize("text", ["nice 3 high", "fork 3 many"])
def test_a_number_that_is_none_is_refused_by_name(text: str) -> None:
    line = read(text)
    with pytest.raises(SyscallError, match=r"^EINVAL: .*(N|VALUE) "):
        line.integer("VALUE" if line.has("VALUE") else "N", 1)


def test_the_words_of_run_are_the_programs_own() -> None:
    line = read("run agent.py --model tiny 'two words' -v")
    assert line.text("FILE") == "agent.py"
    assert line.words == ["--model", "tiny", "two words", "-v"]


def test_usage_shows_options_before_free_text() -> None:
    assert COMMANDS["kill"].usage == "kill [-SIGNAL] [-s SIGNAL] [-l] [--shred] PID..."
    assert COMMANDS["say"].usage == "say PID [--max N] [--no-thoughts] [--json] TEXT [&]"
    assert COMMANDS["cat"].usage == "cat [PID] [-f] [--raw] [--json] [FILE...]"


def test_a_scanner_takes_words_one_by_one() -> None:
    scanner = Scanner("  a 'b c'  d e ")
    assert [scanner.word(), scanner.word(), scanner.rest()] == ["a", "b c", "d e"]
    assert scanner.word() == ""


def test_an_option_that_may_stand_several_times_keeps_all_and_behind_two_dashes_are_the_commands_own_words() -> None:
    line = parse("sandbox --grant a:read --grant /users/x --net -- tool --grant b -- c", COMMANDS)
    assert line is not None
    assert (line.all("--grant"), line.has("--net"), line.all("--read")) == (["a:read", "/users/x"], True, [])
    assert line.words == ["tool", "--grant", "b", "--", "c"]
