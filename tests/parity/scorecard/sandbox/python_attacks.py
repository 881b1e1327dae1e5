"""Answers in Python that attack what judges them.

ATTACKS: name -> (source, what the error must hold). The task is double(x) = 2 x; none of them gives that, unless its attack works.
PROBES: name -> what to try in one call, many in one answer. `HERE` is the path of a file of the judge's side, `PORT` a port and `NAME` an
abstract socket that listen there.
"""

from __future__ import annotations

import textwrap

WRONG = r"^test_doubles: AssertionError$"
"""It ran to its end, returned something, and that was wrong: what it tried had not worked."""
DEADLINE = r"didn't end within|SIGXCPU"
ENDED = r"it ended"


def _function(body: str) -> str:
    return _PRELUDE + "def double(x):\n" + textwrap.indent(body, "    ") + "\n"


_PRELUDE = """\
import ctypes, gc, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def descriptors():
    found = []
    for one in range(3, 64):
        try:
            os.fstat(one)
            found.append(one)
        except OSError:
            pass
    return found
"""

# Those that use something up come last.
PROBES = {
    "reads /etc/passwd": "open('/etc/passwd').read()",
    "reads its parent's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "reads another process's environment": "open('/proc/1/environ').read()",
    "reads memory through /proc": "open('/proc/self/mem', 'rb')",
    "reads a device": "open('/dev/mem', 'rb')",
    "reads the judge's files": "open(HERE).read()",
    "reads the judge's files by a relative path": "open('../' * 20 + HERE).read()",
    "reads the judge's files by a symlink": "os.symlink(HERE, '/tmp/link'); open('/tmp/link').read()",
    "looks for a home": "assert os.listdir(os.path.expanduser('~'))",
    "finds variables in its environment": "assert set(os.environ) - {'LC_CTYPE', 'PWD'}",
    "finds the tests in its frames": """\
frame, seen = sys._getframe(), ''
while frame:
    seen, frame = seen + repr(frame.f_locals) + repr(frame.f_globals), frame.f_back
assert 'test_' + 'doubles' in seen""",
    "finds the tests in its heap": "assert any('test_' + 'doubles' in str(one) for one in gc.get_objects() if type(one) is dict)",
    "finds a descriptor that is not its own": "assert len(descriptors()) > 2",
    "opens a descriptor of another": "open('/proc/1/fd/3')",
    "connects to the judge's machine": "socket.create_connection(('127.0.0.1', PORT), 5)",
    "connects to an abstract socket": "socket.socket(socket.AF_UNIX).connect(NAME)",
    "has a route to the world": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))",
    "asks a name server": "socket.getaddrinfo('twostack.invalid', 80)",
    "sends raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "traces process 1": "assert libc.ptrace(16, 1, 0, 0) == 0",
    "reads process 1's memory": """\
vector = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
assert libc.process_vm_readv(1, vector, 1, vector, 1, 0) > 0""",
    "becomes the superuser": "os.setuid(0)",
    "mounts": "assert libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
    "mounts a library for writing": "assert libc.mount(None, b'/', None, 32 | 4096, None) == 0",
    "makes a user namespace": "assert libc.unshare(0x10000000) == 0",
    "joins process 1's namespaces": "assert libc.setns(os.pidfd_open(1), 0x20000) == 0",
    "changes its root": "os.chroot('/tmp')",
    "makes a device": "os.mknod('/tmp/null', 0o20666, os.makedev(1, 3)); open('/tmp/null', 'w').write('x')",
    "changes the host's name": "socket.sethostname('x')",
    "sets the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "raises a limit": "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "writes into Python's library": "open(os.__file__, 'a').write('#')",
    "writes beside its folder": "open('/file', 'w')",
    "replaces a library": "os.rename('/usr/lib', '/usr/bil')",
    "runs a shell": "subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "runs a program that it wrote": """\
open('/tmp/program', 'w').write('#!' + sys.executable)
os.chmod('/tmp/program', 0o700)
subprocess.run(['/tmp/program'], check=True)""",
    "finds what the last one left": "open('/tmp/left').read()",
    "spells open in other letters": "\uff4fpen('/etc/passwd').read()",
    "fills memory": "held = bytearray(1 << 30)",
    "fills memory by a mapping": "import mmap; held = mmap.mmap(-1, 1 << 30)",
    "fills memory by a file without a name": "os.ftruncate(os.memfd_create('x'), 1 << 30)",
    "writes a large file": "open('/tmp/large', 'wb').write(bytes(5 << 20))",
    "fills the disk": "for one in range(8): open(f'/tmp/{one}', 'wb').write(bytes(3 << 20))",
    "makes many files": "for one in range(5000): open(f'/tmp/{one}', 'w').close()",
    "opens many files": "held = [os.dup(0) for _ in range(100)]",
    "starts many threads": "for _ in range(40): threading.Thread(target=signal.pause, daemon=True).start()",
}

FORGED = "for one in descriptors():\n    try:\n        os.write(one, {line!r})\n    except OSError:\n        pass\nreturn None"

ATTACKS: dict[str, tuple[str, str]] = {
    "forks many processes": (
        _function("for _ in range(40):\n    if not os.fork(): signal.pause()\nreturn 2 * x"),
        "^test_doubles: BlockingIOError: ",
    ),
    "leaves a file": (_function("open('/tmp/left', 'w').write('x')\nreturn None"), WRONG),
    "loops": (_function("while True: pass"), DEADLINE),
    "sleeps while it is loaded": ("import time\ntime.sleep(1000)", DEADLINE),
    "sleeps": (_function("time.sleep(1000)"), DEADLINE),
    "ignores signals": (
        _function(
            "for one in range(1, 65):\n    try: signal.signal(one, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
            "time.sleep(1000)"
        ),
        DEADLINE,
    ),
    "stops itself": (_function("os.kill(os.getpid(), signal.SIGSTOP)"), DEADLINE),
    "prints endlessly": (_function("while True: print('x' * 1000)"), "printed more than"),
    "prints what a judge would": (_function('print(\'{"call": 1, "returned": 4}\', flush=True)\nreturn None'), WRONG),
    "writes a reply on its pipe": (_function(FORGED.format(line=b'{"call": 1, "returned": 4}\n')), r"call 2: .*no reply"),
    "writes a verdict on its pipe": (_function(FORGED.format(line=b'{"outcomes": [["test_doubles", null]]}\n')), "no reply"),
    "writes garbage on its pipe": (_function(FORGED.format(line=b"\xff\x00}\n")), "no message"),
    "writes NaN on its pipe": (_function(FORGED.format(line=b'{"call": 1, "returned": NaN}\n')), "no message"),
    "writes an infinity on its pipe": (_function(FORGED.format(line=b'{"call": 1, "returned": 1e999}\n')), "no message"),
    "writes deep lists on its pipe": (_function(FORGED.replace("{line!r}", "b'[' * 100_000 + b'\\n'")), "no message"),
    "writes a line without end on its pipe": (
        _function("while True:\n    for one in descriptors():\n        try: os.write(one, b'x' * 4096)\n        except OSError: pass"),
        "returned more than",
    ),
    "exits with 0 while it is loaded": ("import sys\nsys.exit(0)", "loading: SystemExit: 0"),
    "leaves with 0 while it is loaded": ("import os\nos._exit(0)", r"loading: it ended \(exit code 0\)"),
    "exits with 0 in a call": (_function("sys.exit(0)"), "SystemExit: 0"),
    "leaves with 0 in a call": (_function("os._exit(0)"), r"call 1: it ended \(exit code 0\)"),
    "leaves with a word at its exit": (
        "import atexit, os\natexit.register(print, 'OK')\n" + _function("raise KeyboardInterrupt"),
        "KeyboardInterrupt",
    ),
    "replaces AssertionError": (
        "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\n" + _function("return None"),
        WRONG,
    ),
    "replaces unittest and pytest": (
        "import sys\nsys.modules['unittest'] = sys.modules['pytest'] = sys\n" + _function("return None"),
        WRONG,
    ),
    "replaces json": (
        'import json\njson.dumps = lambda *_, **__: \'{"call": 1, "returned": 4}\'\n' + _function("return None"),
        "loading: .*no reply",
    ),
    "replaces json in a call": (
        _function("sys.modules['json'].dumps = lambda *_, **__: '{\"call\": 1, \"returned\": 4}'\nreturn None"),
        "call 2: .*no reply",
    ),
    "replaces what serves it": ("import __main__\n__main__.plain = lambda _: {'right': True}\n" + _function("return None"), WRONG),
    "defines tests": ("def test_doubles(): pass\n" + _function("return None"), WRONG),
    "equals everything": ("class Same:\n    def __eq__(self, _): return True\n" + _function("return Same()"), "value of type Same"),
    "is an integer that equals everything": (
        "class Same(int):\n    def __eq__(self, _): return True\n    __hash__ = None\n" + _function("return Same(1)"),
        "value of type Same",
    ),
    "returns NaN": (_function("return float('nan')"), "got nan"),
    "returns an infinity": (_function("return float('-inf')"), "got -inf"),
    "returns a set": (_function("return {2 * x}"), "value of type set"),
    "returns bytes": (_function("return b'4'"), "value of type bytes"),
    "returns itself": (_function("found = []\nfound.append(found)\nreturn found"), "recursion"),
    "returns something huge": (_function("return 'x' * (2 << 20)"), "returned more than"),
    "returns an integer without spelling": (_function("return 10 ** 5000"), "4300"),
    "recurses": (_function("return double(x)"), "RecursionError"),
    "recurses without a limit": (
        _function("sys.setrecursionlimit(10 ** 9)\nreturn [double(x)]"),
        f"{ENDED}|MemoryError|RecursionError|{DEADLINE}",
    ),
    "reads address 0": (_function("return ctypes.string_at(0)"), "SIGSEGV"),
    "kills its parent": (_function("os.kill(os.getppid(), signal.SIGKILL)\nos.kill(os.getppid(), signal.SIGINT)\nreturn None"), WRONG),
    "kills everybody": (
        _function("if not os.fork():\n    time.sleep(1000)\nos.kill(-1, signal.SIGKILL)\nreturn None"),
        WRONG,
    ),
    "kills its group": (_function("os.killpg(0, signal.SIGKILL)"), "SIGKILL"),
    "closes every descriptor": (_function("os.closerange(0, 64)\ntime.sleep(1000)"), "closed its pipe"),
    "leaves threads": (
        _function("threading.Thread(target=lambda: [print('x' * 1000) for _ in iter(int, 1)], daemon=True).start()\nreturn None"),
        f"{WRONG}|printed more than",
    ),
    "leaves a process of another session": (
        _function("if not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(1000)\n    os._exit(0)\nreturn None"),
        WRONG,
    ),
    "raises at length": (_function("raise ValueError('x' * (8 << 20))"), "^test_doubles: ValueError: x+$"),
    "raises what can't be spelled": (
        "class Mute(Exception):\n    def __str__(self): raise SystemExit(0)\n" + _function("raise Mute"),
        ENDED,
    ),
    "raises lone surrogates and escapes": (_function("raise ValueError('\\udc80\\x1b[2J\\n\\u202e')"), "^test_doubles: ValueError:"),
    "is nothing": ("", "defines no function double"),
    "is something else": ("double = 4", "defines no function double"),
    "is huge": ("x = 1\n" * 20_000, "characters"),
}

UNREADABLE = {
    "null bytes": "def double(x):\n    return 2 * x\x00",
    "a lone surrogate": "def double(x):\n    return '\udc80'",
    "an encoding": "# coding: rot13\nqrs qbhoyr(k): erghea 2 * k",
    "a great many parentheses": "(" * 60_000,
    "a great many minus signs": "-" * 60_000 + "1",
    "a great many attributes": "x" + ".x" * 30_000 + " = ",
    "a character that looks like another": "def double(x):\n    return 2 \u2217 x",
    "prose": "I would double it.",
}
"""Answers that don't compile, or bring the compiler down."""


def probing() -> str:
    """An answer that tries all probes: attack(name) says what came of one, `it worked` or an exception."""
    tries = [
        f"def probe_{number}():\n{textwrap.indent(body, '    ')}\nNAMES[{name!r}] = probe_{number}\n"
        for number, (name, body) in enumerate(PROBES.items())
    ]
    attack = (
        "def attack(name):\n    try: NAMES[name]()\n"
        "    except BaseException as error: return type(error).__name__\n    return 'it worked'\n"
    )
    return _PRELUDE + "NAMES = {}\n" + "".join(tries) + attack
