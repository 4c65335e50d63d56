#!/usr/bin/env bash
# Checks that transformers loads what the export stage writes and computes the same logits.
#
#   tests/export/check.sh [BUNDLE…]     default: the bundles that the tests in tests/cases/export.rs write
#
# Needs Python 3.10 or newer with the pinned packages (about 3 GB; torch brings its GPU libraries along):
#
#   python3 -m venv venv
#   venv/bin/pip install torch==2.15.0 transformers==5.23.0 accelerate==1.15.0 safetensors numpy
#   PYTHON=venv/bin/python tests/export/check.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
if [ $# = 0 ]; then
  cargo test --quiet --test main cases::export
  set -- target/tmp/bundle-*
fi
failed=0
for bundle in "$@"; do
  echo "== $bundle"
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" tests/export/check.py "$bundle" || failed=1
done
exit $failed
