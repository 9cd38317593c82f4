# SPDX-License-Identifier: Apache-2.0
"""Readers of policy files, one a format; each is `load(path) -> Policy`."""
