#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-paper-nvidia-h200
git -C "$here" worktree add --detach "$copy" 6f282d50b9e3037da22f23529a14ad7548c38a78
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/paper.yaml
make repro
