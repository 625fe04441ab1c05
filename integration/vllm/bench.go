//go:build unix

package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// rounds is how many times each contender is measured, in turn with the others.
const rounds = 5

// contender is a proxy in front of the same engines: one encoder and one prefill+decode.
type contender struct {
	name  string
	start func(ctx context.Context, f *fleet) (*engine, error)
}

// measured are the results that `vllm bench serve` reports for one round.
type measured struct {
	Failed     int     `json:"failed"`
	Throughput float64 `json:"request_throughput"` // requests per second
	TTFT       float64 `json:"median_ttft_ms"`
	MeanTTFT   float64 `json:"mean_ttft_ms"`
	P99TTFT    float64 `json:"p99_ttft_ms"`
}

// bench measures epd_proxy and vLLM's own proxy script in turn, in several rounds.
func (s *suite) bench(ctx context.Context, f *fleet) error {
	script, err := f.release.script(ctx, filepath.Dir(f.venv))
	if err != nil {
		return err
	}
	t := topology{encode: list("e1"), decode: list("pd1")}
	if err := f.want(ctx, t.engines()...); err != nil {
		return err
	}
	contenders := []contender{
		{"epd_proxy", s.ours("")},
		{"epd_proxy, encode_batch 8", s.ours("encode_batch 8")},
		{"epd_proxy, references, encode_batch 8", s.ours("references\nencode_batch 8")},
		{"disagg_epd_proxy.py --no-rewrite", theirs(script, "--no-rewrite")},
		{"disagg_epd_proxy.py", theirs(script)},
	}
	results := make([][]measured, len(contenders))
	for round := range rounds {
		for i := range contenders {
			c := (round + i) % len(contenders) // the order differs from round to round
			m, err := s.measure(ctx, f, contenders[c], round*len(contenders)+c)
			if err != nil {
				return fmt.Errorf("%s: %w", contenders[c].name, err)
			}
			say("  %-40s %5.2f requests/s, TTFT %4.0f ms median, %4.0f mean, %4.0f p99", contenders[c].name, m.Throughput, m.TTFT, m.MeanTTFT, m.P99TTFT)
			if m.Failed > 0 {
				s.report.failed(f, "vllm bench serve", fmt.Sprintf("%s: %d requests failed", contenders[c].name, m.Failed))
			}
			results[c] = append(results[c], m)
		}
	}
	for i, c := range contenders {
		s.report.measured(c.name, results[i])
		s.report.passed(f, "vllm bench serve")
	}
	return nil
}

// measure runs `vllm bench serve` against one contender. Every round has new images.
func (s *suite) measure(ctx context.Context, f *fleet, c contender, seed int) (m measured, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	p, err := c.start(ctx, f)
	if err != nil {
		return m, err
	}
	defer p.stop()
	if err := p.listens(ctx); err != nil {
		return m, err
	}
	_, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		return m, err
	}
	ascii := make([]string, 16) // otherwise half of the tokens are parts of characters, and no event has any text
	for i := range ascii {
		ascii[i] = fmt.Sprint(40 + i)
	}
	result := filepath.Join(f.logs, "bench.json")
	if err := os.Remove(result); err != nil && !errors.Is(err, os.ErrNotExist) {
		return m, err
	}
	err = run(ctx, []string{"HF_HUB_OFFLINE=1"}, vllm(f.venv), "bench", "serve",
		"--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--host", host, "--port", port,
		"--model", f.dir, "--served-model-name", "tiny", "--seed", fmt.Sprint(seed),
		"--dataset-name", "random-mm", "--num-prompts", "60", "--max-concurrency", "4", "--num-warmups", "4",
		"--random-input-len", "50", "--random-output-len", "10", "--ignore-eos",
		"--random-mm-base-items-per-request", "2", "--random-mm-num-mm-items-range-ratio", "0",
		"--random-mm-limit-mm-per-prompt", `{"image":2,"video":0}`, "--random-mm-bucket-config", "{(256,256,1):1.0}",
		"--extra-body", `{"allowed_token_ids":[`+strings.Join(ascii, ",")+`]}`,
		"--save-result", "--result-dir", filepath.Dir(result), "--result-filename", filepath.Base(result))
	if err != nil {
		return m, err
	}
	data, err := os.ReadFile(result)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// ours starts Caddy, over HTTP like vLLM's script.
func (s *suite) ours(options string) func(context.Context, *fleet) (*engine, error) {
	return func(_ context.Context, f *fleet) (*engine, error) {
		port, err := fakevllm.FreePort()
		if err != nil {
			return nil, err
		}
		p, err := s.caddyEngine(f.logs, "http://"+local(port), block(f.addrs(list("e1")), nil, f.addrs(list("pd1")), "", options))
		if err != nil {
			return nil, err
		}
		p.addr = local(port)
		return p, p.start()
	}
}

// theirs starts vLLM's script.
func theirs(script string, flags ...string) func(context.Context, *fleet) (*engine, error) {
	return func(_ context.Context, f *fleet) (*engine, error) {
		port, err := fakevllm.FreePort()
		if err != nil {
			return nil, err
		}
		e := &engine{
			name: "script",
			addr: local(port),
			args: slices.Concat([]string{
				filepath.Join(f.venv, "bin", "python"), script, "--host", host, "--port", strconv.Itoa(port),
				"--encode-servers-urls", f.engines["e1"].url(), "--decode-servers-urls", f.engines["pd1"].url(),
			}, flags),
			log: filepath.Join(f.logs, "script.log"),
		}
		return e, e.start()
	}
}

const scriptPath = "examples/disaggregated/disaggregated_encoder/disagg_epd_proxy.py"

// script extracts vLLM's proxy script from the source distribution of the release.
func (r release) script(ctx context.Context, dir string) (string, error) {
	file := filepath.Join(dir, path.Base(scriptPath))
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	say("fetching vLLM's proxy script")
	source, err := r.source(ctx)
	if err != nil {
		return "", err
	}
	defer os.Remove(source.Name())
	defer source.Close()
	unzipped, err := gzip.NewReader(source)
	if err != nil {
		return "", err
	}
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if err != nil {
			return "", fmt.Errorf("%s: %w", scriptPath, err)
		}
		if !strings.HasSuffix(header.Name, scriptPath) {
			continue
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return "", err
		}
		return file, os.WriteFile(file, data, 0o644)
	}
}

// source downloads the source distribution from PyPI.
func (r release) source(ctx context.Context) (*os.File, error) {
	var project struct {
		Files []struct {
			Filename, URL string
			Hashes        map[string]string
		}
	}
	resp, err := get(ctx, "https://pypi.org/simple/vllm/", "application/vnd.pypi.simple.v1+json")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&project); err != nil {
		return nil, err
	}
	for _, f := range project.Files {
		if f.Filename == fmt.Sprintf("vllm-%s.tar.gz", r) {
			return download(ctx, f.URL, f.Hashes["sha256"])
		}
	}
	return nil, fmt.Errorf("PyPI has no source distribution of vLLM %s", r)
}

// download downloads into a temporary file and checks its SHA-256.
func download(ctx context.Context, url, sum string) (file *os.File, err error) {
	resp, err := get(ctx, url, "*/*")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if file, err = os.CreateTemp("", "vllm-*.tar.gz"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(file, hash), resp.Body); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
		return nil, fmt.Errorf("%s has the SHA-256 %s, not %s", url, got, sum)
	}
	_, err = file.Seek(0, io.SeekStart)
	return file, err
}
