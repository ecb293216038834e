#!/usr/bin/env bash
# The examples of examples/frameworks with real packages: each has its own, so that `npm ci` here stays small.
set -euo pipefail
cd "$(dirname "$0")/../.."
for package in examples/frameworks/*/package.json; do
  folder="$(dirname "$package")"
  echo "--- $folder"
  npm ci --prefix "$folder" --no-audit --no-fund --silent
done
npx tsc --noEmit --project test/frameworks
npx vitest run --config test/frameworks/vitest.config.ts --root . "$@"
