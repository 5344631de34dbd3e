"""As a process: runs tests for pytest-xdist, as the command does with which execnet starts one."""

import sys

if __name__ == "__main__":
    exec(eval(sys.stdin.readline()))
