"""Ten lines of job control: several processes at once, one stopped and continued, one forked, one killed.

What a Unix shell does with programs, done with language models: bob stops in mid-sentence while a copy of alice, made
without copying her pages, answers for her; then he goes on as if nothing had happened.
"""

import llmasos

with llmasos.System.connect(boot=True) as system:
    alice, bob = system.spawn(name="alice"), system.spawn(name="bob")
    alice.ask("My name is Ada.")
    story = bob.say("Tell me a long story about a fox.")
    print("bob begins:", next(story), "...")
    bob.stop()
    [twin] = alice.fork()
    print("alice's twin:", twin.ask("What is my name?"))
    bob.cont()
    print("bob goes on:", "".join(story).strip())
    twin.kill()
