# SPDX-License-Identifier: Apache-2.0
"""Readers of policy files, a module or a folder a format; each is `load(path) -> Policy`."""
