# SPDX-License-Identifier: Apache-2.0
"""`python -m tinyrl_tvm` is the command `tinyrl-tvm`."""

from tinyrl_tvm.cli import main

if __name__ == "__main__":
    main()
