#!/usr/bin/env bash
# What takes too long for every commit: the tests on each supported Node.js, the long soaks and the proof under load.
set -euo pipefail
cd "$(dirname "$0")/.."
for version in 20 22 24 26; do
  echo "--- Node $version"
  npx --yes --package "node@$version" --call 'node --version && npm test && node test/package/check.mjs consumers'
done
echo '--- soaks and load'
SOAK=full npm test -- test/model test/integration
