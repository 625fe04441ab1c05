#!/usr/bin/env bash
# Runs vLLM as one encoder and one engine for prefill and decode, with epd_proxy in front, and tries them out.
# README.md says what this needs and which variables it takes.
set -euo pipefail

ENCODE_PORT=${ENCODE_PORT:-19534}
PREFILL_DECODE_PORT=${PREFILL_DECODE_PORT:-19535}
GPU_E=${GPU_E:-0}
GPU_PD=${GPU_PD:-1}

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The scheduler's budget of tokens means nothing to an encoder: 114688 is simply more than it ever needs.
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
