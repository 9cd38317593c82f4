# SPDX-License-Identifier: Apache-2.0
"""From a library to a folder that any engineer can build: `create` writes it, `load` reads it back, `build` makes it.

    microtvm_projects/<platform>/**      copied as it stands; a file that ends in .jinja has holes to fill
    microtvm_projects/replay/**          the test vectors and the code that judges the answers: the same on every platform
    codegen/host/** of the library       -> the platform's folder for code, policy/** on most
    the library itself                   -> model.tar beside it
    what was chosen at `create`          -> tinyrl_project.json, so that no later verb asks again

`platforms` is a file a platform and a table of them all, `templates` fills the holes, `generate` writes the folder,
`folder` reads it, `building` runs the platform's own build tool, `flashing` the one that flashes.
"""

from tinyrl_tvm.project.building import BuiltProject, build, build_profile, built, ensure_built
from tinyrl_tvm.project.flashing import flash
from tinyrl_tvm.project.folder import PROJECT_FILE, Project, load
from tinyrl_tvm.project.generate import create
from tinyrl_tvm.project.platforms import PLATFORMS
from tinyrl_tvm.project.templates import TEMPLATES

__all__ = ["PLATFORMS", "PROJECT_FILE", "TEMPLATES", "BuiltProject", "Project"]
__all__ += ["build", "build_profile", "built", "create", "ensure_built", "flash", "load"]
