# SPDX-License-Identifier: Apache-2.0
"""Project templates, one folder a platform: real .c, .h, .ld and build files that open in an editor.

No Python logic lives here; `tinyrl_tvm.project` fills the few holes.
"""
