"""What a policy of one's own is written with (docs/policies.md).

    from llmasos.policies import LLMProcess, Policy

    class Shortest(Policy):
        def key(self, process: LLMProcess) -> int:
            return len(process.log)

It becomes code in the kernel, which loads its file: `llmasos boot --policy FILE.py:Shortest`.
"""

from llmasos.kernel.memory.evictions import Evictions
from llmasos.kernel.memory.victims import Victims
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy

__all__ = ["Evictions", "Image", "LLMProcess", "Policy", "Victims"]
