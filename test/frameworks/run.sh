#!/usr/bin/env bash
# The examples of examples/frameworks with real packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash test/frameworks/install.sh
npx tsc --noEmit --project test/frameworks
npx vitest run --config test/frameworks/vitest.config.ts --root . "$@"
