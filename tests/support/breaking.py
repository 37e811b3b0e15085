"""Scripts that run a worker whose engine fails after its warm-up."""

BREAKS = """
import runpy, sys
from sd_core.engine.engine import Engine
from sd_core.engine.scheduler import Scheduler

warm_up = Engine.warm_up

def break_then(self):
    warm_up(self)
    Scheduler.next_batch = lambda self: [][0]

Engine.warm_up = break_then
"""

HANDLER = BREAKS + 'runpy.run_path("handler.py", run_name="__main__")'
SERVER = BREAKS + 'sys.argv = ["worker", "serve"]; runpy.run_module("worker", run_name="__main__")'
