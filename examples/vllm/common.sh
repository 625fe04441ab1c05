# shellcheck shell=bash
# Functions that 1e1pd.sh and 1e1p1d.sh share. README.md lists the variables.

MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
ENDPOINT_PORT=${ENDPOINT_PORT:-10001}
LOG_PATH=${LOG_PATH:-./logs}
TIMEOUT_SECONDS=${TIMEOUT_SECONDS:-1200}
NUM_PROMPTS=${NUM_PROMPTS:-100}
# vLLM 0.11.1 called it ECSharedStorageConnector.
EC_CONNECTOR=${EC_CONNECTOR:-ECExampleConnector}

declare -A PIDS=()  # by name: the servers, and the client while it runs
declare -A PORTS=() # by name: the servers

die() {
	echo "error: $1" >&2
	exit 1
}

# die_of NAME MESSAGE prints the end of the server's log, then calls die.
die_of() {
	echo "==> the end of $LOG_PATH/$1.log" >&2
	tail -n 30 "$LOG_PATH/$1.log" >&2
	die "$1: $2"
}

cleanup() {
	# Must run to its end, also after a second Ctrl-C, and if the terminal is gone, where every echo fails.
	trap '' INT TERM HUP PIPE
	set +e
	((${#PIDS[@]} == 0)) || echo "stopping all processes"
	local pid deadline=$((SECONDS + 30))
	for pid in "${PIDS[@]}"; do
		# A server that has only just been started may not be in its own session yet.
		kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null
	done
	for pid in "${PIDS[@]}"; do
		while kill -0 -- "-$pid" 2>/dev/null && ((SECONDS < deadline)); do
			sleep 0.2
		done
		kill -KILL -- "-$pid" 2>/dev/null
	done
	wait
	rm -rf "$WORK" ${GENERATED_IMAGE:+"$GENERATED_IMAGE"}
}

# spawn NAME COMMAND... runs a command in the background in its own session: Ctrl-C then reaches only this script, and
# cleanup can stop the command together with all of its workers.
spawn() {
	local name=$1
	shift
	setsid "$@" &
	PIDS[$name]=$!
}

# run COMMAND... runs a client and waits for it. In the foreground, bash would run no trap before the client ends.
run() {
	local status=0
	spawn client "$@"
	wait "${PIDS[client]}" || status=$?
	unset 'PIDS[client]'
	return "$status"
}

# start NAME PORT COMMAND... starts a server.
start() {
	local name=$1 port=$2
	shift 2
	# Another server on this port would answer the health check.
	if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
		die "$name: port $port is in use"
	fi
	echo "starting $name on port $port, log in $LOG_PATH/$name.log"
	spawn "$name" "$@" >"$LOG_PATH/$name.log" 2>&1
	PORTS[$name]=$port
}

# engine NAME GPU PORT EXTRA FLAGS... starts a vLLM engine. EXTRA is the user's own flags, in one string.
engine() {
	local name=$1 gpu=$2 port=$3 extra
	read -ra extra <<<"$4"
	shift 4
	# Every engine may read local media: epd_proxy sends the media items, encoded or not, to all of them.
	start "$name" "$port" env CUDA_VISIBLE_DEVICES="$gpu" vllm serve "$MODEL" \
		--port "$port" \
		--allowed-local-media-path "$MEDIA_PATH" \
		"$@" "${extra[@]}"
}

# ec_config ROLE is the configuration of the connector for embeddings.
ec_config() {
	printf '{"ec_connector":"%s","ec_role":"%s","ec_connector_extra_config":{"shared_storage_path":"%s"}}' \
		"$EC_CONNECTOR" "$1" "$EC_SHARED_STORAGE_PATH"
}

# kv_config ROLE is the configuration of the connector for KV blocks.
kv_config() {
	printf '{"kv_connector":"NixlConnector","kv_role":"%s"}' "$1"
}

check_alive() {
	local name
	for name in "${!PORTS[@]}"; do
		kill -0 "${PIDS[$name]}" 2>/dev/null || die_of "$name" "the process ended"
	done
}

# wait_ready waits until every server started so far answers /health.
wait_ready() {
	local name deadline=$((SECONDS + TIMEOUT_SECONDS))
	for name in "${!PORTS[@]}"; do
		until curl --noproxy '*' -fs -m 5 -o /dev/null "http://127.0.0.1:${PORTS[$name]}/health"; do
			check_alive
			((SECONDS < deadline)) || die_of "$name" "no answer on /health within $TIMEOUT_SECONDS s"
			sleep 1
		done
	done
	check_alive
}

# find_caddy sets CADDY to one that has the plugin.
find_caddy() {
	local root candidate
	root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
	local candidates=(caddy "$root/caddy")
	if [[ -n ${CADDY:-} ]]; then
		candidates=("$CADDY")
	fi
	for candidate in "${candidates[@]}"; do
		# Not grep -q: it would end caddy by SIGPIPE, which is a failure with pipefail.
		if "$candidate" list-modules 2>/dev/null | grep -x http.handlers.epd_proxy >/dev/null; then
			CADDY=$candidate
			return
		fi
	done
	die "no Caddy with the module http.handlers.epd_proxy (looked at: ${candidates[*]}). Build one in $root:

	go build -o caddy ./cmd/caddy

or elsewhere, and then name it in CADDY or put it on PATH:

	xcaddy build --with github.com/caddy-epd/caddy-epd/epdhandler"
}

# start_proxy ENCODE PREFILL DECODE: the arguments of the three pools.
start_proxy() {
	# Plain HTTP, so that a client needs no CA; README.md says how to turn on HTTPS. No admin endpoint: another Caddy
	# on this machine may have its port.
	cat >"$WORK/Caddyfile" <<EOF
{
	admin off
	persist_config off
	grace_period 5s
}

http://:$ENDPOINT_PORT {
	epd_proxy {
		encode $1
		prefill $2
		decode $3
	}
}
EOF
	start proxy "$ENDPOINT_PORT" "$CADDY" run --config "$WORK/Caddyfile"
	wait_ready
}

# write_png FILE writes an image for the request, red on the left and blue on the right.
write_png() {
	python3 - "$1" <<-'EOF'
		import struct, sys, zlib

		def chunk(kind, data):
		    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

		row = b"\0" + b"\xff\0\0" * 128 + b"\0\0\xff" * 128
		with open(sys.argv[1], "wb") as f:
		    f.write(b"\x89PNG\r\n\x1a\n")
		    f.write(chunk(b"IHDR", struct.pack(">IIBBBBB", 256, 256, 8, 2, 0, 0, 0)))
		    f.write(chunk(b"IDAT", zlib.compress(row * 256)))
		    f.write(chunk(b"IEND", b""))
	EOF
}

# prepare_media sets MEDIA_PATH and IMAGE, both absolute.
prepare_media() {
	if [[ -n ${IMAGE:-} ]]; then
		[[ -r $IMAGE ]] || die "IMAGE: cannot read $IMAGE"
		IMAGE=$(realpath "$IMAGE")
		MEDIA_PATH=${MEDIA_PATH:-$(dirname "$IMAGE")}
	fi
	MEDIA_PATH=${MEDIA_PATH:-$WORK/media}
	mkdir -p "$MEDIA_PATH"
	MEDIA_PATH=$(realpath "$MEDIA_PATH")
	if [[ -z ${IMAGE:-} ]]; then
		GENERATED_IMAGE=$(mktemp "$MEDIA_PATH/epd-XXXXXX.png")
		IMAGE=$GENERATED_IMAGE
		write_png "$IMAGE"
	fi
	[[ $IMAGE == "$MEDIA_PATH"/* ]] || die "IMAGE: $IMAGE is not below MEDIA_PATH ($MEDIA_PATH), so the engines may not read it"
}

# ask_about_image sends one request with a local image.
ask_about_image() {
	local status
	echo "sending a request with $IMAGE"
	python3 - "$MODEL" "$IMAGE" >"$WORK/request.json" <<-'EOF'
		import json, pathlib, sys

		print(json.dumps({
		    "model": sys.argv[1],
		    "messages": [{"role": "user", "content": [
		        {"type": "image_url", "image_url": {"url": pathlib.Path(sys.argv[2]).as_uri()}},
		        {"type": "text", "text": "What is in this image?"},
		    ]}],
		    "max_tokens": 128,
		}))
	EOF
	run curl --noproxy '*' -sS -m 300 -H 'Content-Type: application/json' -d "@$WORK/request.json" \
		-o "$WORK/response.json" -w '%{http_code}' "http://127.0.0.1:$ENDPOINT_PORT/v1/chat/completions" \
		>"$WORK/status" || die "the request with a local image failed, see $LOG_PATH"
	cat "$WORK/response.json"
	echo
	status=$(<"$WORK/status")
	[[ $status == 200 ]] || die "the request with a local image got HTTP status $status, see $LOG_PATH"
}

benchmark() {
	echo "running the benchmark"
	run vllm bench serve \
		--model "$MODEL" \
		--backend openai-chat \
		--endpoint /v1/chat/completions \
		--dataset-name hf \
		--dataset-path lmarena-ai/VisionArena-Chat \
		--seed 0 \
		--num-prompts "$NUM_PROMPTS" \
		--host 127.0.0.1 \
		--port "$ENDPOINT_PORT" || die "vllm bench serve failed, see $LOG_PATH"
	check_alive
}

# try_out sends a request and runs the benchmark, as configured.
try_out() {
	ask_about_image
	if [[ ${SKIP_BENCH:-0} != 1 ]]; then
		benchmark
	fi
	if [[ ${KEEP_RUNNING:-0} == 1 ]]; then
		echo "serving on http://127.0.0.1:$ENDPOINT_PORT until Ctrl-C"
		while sleep 1; do
			check_alive
		done
	fi
}

for tool in vllm curl python3 setsid; do
	command -v "$tool" >/dev/null || die "$tool is not on PATH"
done
find_caddy

WORK=$(mktemp -d)
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

mkdir -p "$LOG_PATH"
EC_SHARED_STORAGE_PATH=${EC_SHARED_STORAGE_PATH:-$WORK/ec}
mkdir -p "$EC_SHARED_STORAGE_PATH"
EC_SHARED_STORAGE_PATH=$(realpath "$EC_SHARED_STORAGE_PATH")
prepare_media
