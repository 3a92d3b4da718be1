"""What pyproject.toml cannot say: the native decoder's files are compiled at once, as many as there are CPUs.

setuptools compiles the files of one extension one after the other (its `parallel` is for several extensions). Here each
file is a call of its own of the compiler class, from threads; all that differs between calls is in their arguments. The
first that fails is the error of the whole, and what has not begun by then does not begin.
"""

import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from setuptools import setup
from setuptools.command import build_ext as setuptools_build_ext


class build_ext(setuptools_build_ext.build_ext):  # under this name setuptools reports a failure
    def build_extensions(self) -> None:
        compile_all = self.compiler.compile

        def compile_together(sources: list[str], *args: Any, **options: Any) -> list[str]:
            pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1))
            try:
                calls = {  # setuptools sorts the sources, and the longest to compile, kernels_*.c, are then the last
                    source: pool.submit(compile_all, [source], *args, **options) for source in reversed(sources)
                }
                done, _ = wait(calls.values(), return_when=FIRST_EXCEPTION)
                for call in done:
                    call.result()
            finally:
                pool.shutdown(cancel_futures=True)
            return [name for source in sources for name in calls[source].result()]

        self.compiler.compile = compile_together
        super().build_extensions()


setup(cmdclass={"build_ext": build_ext})
