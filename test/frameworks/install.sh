#!/usr/bin/env bash
# Installs the packages of examples/frameworks: each example has its own, so that `npm ci` here stays small.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Installs the packages of one example. A registry that fails once is asked again; the last failure is printed.
install() {
  local log
  for seconds in 5 20 0; do
    log="$(npm ci --prefix "$1" --prefer-offline --fetch-retries=1 --fetch-retry-mintimeout=2000 --no-audit --no-fund \
      --loglevel=error 2>&1)" && return
    sleep "$seconds"
  done
  printf '%s\nThe packages of %s could not be installed. These tests need a registry of npm packages.\n' "$log" "$1" >&2
  return 1
}

for package in examples/frameworks/*/package.json; do
  folder="$(dirname "$package")"
  # What is installed from this lock file stays.
  if cmp -s "$folder/package-lock.json" "$folder/node_modules/.installed-lock.json"; then continue; fi
  echo "--- $folder"
  install "$folder"
  cp "$folder/package-lock.json" "$folder/node_modules/.installed-lock.json"
done

# Tests of the clients themselves, and the benchmark, import these.
mkdir -p test/frameworks/node_modules
for package in ai-sdk/@ai-sdk ai-sdk/ai langgraph/@langchain openai-agents/@openai openai-agents/openai; do
  ln -sfn "../../../examples/frameworks/${package%%/*}/node_modules/${package#*/}" test/frameworks/node_modules/
done
