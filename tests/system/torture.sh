#!/usr/bin/env bash
# Kill a real training run N times (default 30) at random moments, resume it each time, compare it with an
# uninterrupted one: bash tests/system/torture.sh [N] [--seed S]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/environment.sh
exec python -m tests.system.torture "$@"
