#!/usr/bin/env bash
# Runs one encoder, one prefill and one decode engine of vLLM with epd_proxy in front, and sends requests.
# README.md lists the requirements and the variables.
set -euo pipefail

ENCODE_PORT=${ENCODE_PORT:-19534}
PREFILL_PORT=${PREFILL_PORT:-19535}
DECODE_PORT=${DECODE_PORT:-19536}
GPU_E=${GPU_E:-0}
GPU_P=${GPU_P:-1}
GPU_D=${GPU_D:-2}

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# An encoder does not need the scheduler's token budget: 114688 is more than it ever uses.
engine encode "$GPU_E" "$ENCODE_PORT" "${ENCODE_ARGS:-}" \
	--enforce-eager \
	--no-enable-prefix-caching \
	--max-num-batched-tokens 114688 \
	--ec-transfer-config "$(ec_config ec_producer)"

# NIXL's handshake has its own port. Two engines on one machine need different ones.
VLLM_NIXL_SIDE_CHANNEL_PORT=${PREFILL_NIXL_PORT:-5559} \
	engine prefill "$GPU_P" "$PREFILL_PORT" "${PREFILL_ARGS:-}" \
	--ec-transfer-config "$(ec_config ec_consumer)" \
	--kv-transfer-config "$(kv_config kv_producer)"

VLLM_NIXL_SIDE_CHANNEL_PORT=${DECODE_NIXL_PORT:-6000} \
	engine decode "$GPU_D" "$DECODE_PORT" "${DECODE_ARGS:-}" \
	--kv-transfer-config "$(kv_config kv_consumer)"

wait_ready
start_proxy "127.0.0.1:$ENCODE_PORT" "127.0.0.1:$PREFILL_PORT" "127.0.0.1:$DECODE_PORT"
try_out
