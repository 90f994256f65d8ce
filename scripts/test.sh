#!/usr/bin/env bash
# The default test suite in its own environment; arguments go to pytest: bash scripts/test.sh -m parity
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
exec python -m pytest "$@"
