#!/usr/bin/env bash
# Runs one encoder and one prefill+decode engine of vLLM with epd_proxy in front, and sends requests.
# README.md lists the requirements and the variables.
set -euo pipefail

ENCODE_PORT=${ENCODE_PORT:-19534}
PREFILL_DECODE_PORT=${PREFILL_DECODE_PORT:-19535}
GPU_E=${GPU_E:-0}
GPU_PD=${GPU_PD:-1}

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# An encoder does not need the scheduler's token budget: 114688 is more than it ever uses.
engine encode "$GPU_E" "$ENCODE_PORT" "${ENCODE_ARGS:-}" \
	--enforce-eager \
	--no-enable-prefix-caching \
	--max-num-batched-tokens 114688 \
	--ec-transfer-config "$(ec_config ec_producer)"

engine prefill-decode "$GPU_PD" "$PREFILL_DECODE_PORT" "${PREFILL_DECODE_ARGS:-}" \
	--ec-transfer-config "$(ec_config ec_consumer)"

wait_ready
start_proxy "127.0.0.1:$ENCODE_PORT" disable "127.0.0.1:$PREFILL_DECODE_PORT"
try_out
