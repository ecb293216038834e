#!/usr/bin/env bash
# What takes too long for every commit: the tests on each supported Node, and the long soak.
set -euo pipefail
cd "$(dirname "$0")/.."
for version in 20 22 24; do
  echo "--- Node $version"
  npx --yes --package "node@$version" --call 'node --version && npm test'
done
echo '--- soak'
SOAK=full npm test -- test/model
