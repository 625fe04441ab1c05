#!/usr/bin/env bash
# Runs vLLM as one encoder, one prefill and one decode engine, with epd_proxy in front, and tries them out.
# README.md says what this needs and which variables it takes.
set -euo pipefail

ENCODE_PORT=${ENCODE_PORT:-19534}
PREFILL_PORT=${PREFILL_PORT:-19535}
DECODE_PORT=${DECODE_PORT:-19536}
GPU_E=${GPU_E:-0}
GPU_P=${GPU_P:-1}
GPU_D=${GPU_D:-2}

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The scheduler's budget of tokens means nothing to an encoder: 114688 is simply more than it ever needs.
engine encode "$GPU_E" "$ENCODE_PORT" "${ENCODE_ARGS:-}" \
	--enforce-eager \
	--no-enable-prefix-caching \
	--max-num-batched-tokens 114688 \
	--ec-transfer-config "$(ec_config ec_producer)"

# NIXL's handshake has a port of its own, and one default for all: two engines on one machine would collide.
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
