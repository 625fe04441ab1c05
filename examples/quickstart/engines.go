package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// engines take the place of vLLM.
type engines struct {
	encode, prefill, decode []*fakevllm.Engine
}

// startEngines starts them on the usual ports, or on free ones.
func startEngines() (*engines, error) {
	const (
		encodeTime  = 8 * time.Millisecond
		prefillTime = 20 * time.Millisecond
		tokenTime   = 20 * time.Millisecond
	)
	// What is encoded or prefilled by one engine can be used by the others.
	cluster := fakevllm.NewCluster()
	e := new(engines)
	for _, engine := range []struct {
		pool    *[]*fakevllm.Engine
		port    int
		options fakevllm.Options
	}{
		{&e.encode, 8001, fakevllm.Options{Role: fakevllm.Encode, Name: "encoder-1", Delay: encodeTime}},
		{&e.encode, 8002, fakevllm.Options{Role: fakevllm.Encode, Name: "encoder-2", Delay: encodeTime}},
		{&e.prefill, 8101, fakevllm.Options{Role: fakevllm.Prefill, Name: "prefill-1", Delay: prefillTime}},
		{&e.decode, 8201, fakevllm.Options{Role: fakevllm.Decode, Name: "decoder-1", ChunkDelay: tokenTime, RequireKV: true}},
		{&e.decode, 8202, fakevllm.Options{Role: fakevllm.Decode, Name: "decoder-2", ChunkDelay: tokenTime, RequireKV: true}},
	} {
		o := engine.options
		o.Forget = true
		o.Addr = fmt.Sprintf("127.0.0.1:%d", engine.port)
		started, err := cluster.Start(o)
		if err != nil {
			o.Addr = "" // the port is in use: take any free one
			started, err = cluster.Start(o)
		}
		if err != nil {
			e.close()
			return nil, err
		}
		*engine.pool = append(*engine.pool, started)
	}
	return e, nil
}

func (e *engines) all() []*fakevllm.Engine {
	return append(append(append([]*fakevllm.Engine{}, e.encode...), e.prefill...), e.decode...)
}

// block is the Caddyfile's part about these engines.
func (e *engines) block() string {
	var b strings.Builder
	b.WriteString("\tepd_proxy {\n")
	for _, pool := range []struct {
		name    string
		engines []*fakevllm.Engine
	}{{"encode", e.encode}, {"prefill", e.prefill}, {"decode", e.decode}} {
		b.WriteString("\t\t" + pool.name)
		for _, engine := range pool.engines {
			b.WriteString(" " + engine.Addr())
		}
		b.WriteString("\n")
	}
	b.WriteString("\t}\n")
	return b.String()
}

// find returns the engine with a name in epd_proxy's logs, such as decode#2.
func (e *engines) find(upstream string) (*fakevllm.Engine, bool) {
	for stage, list := range map[string][]*fakevllm.Engine{"encode": e.encode, "prefill": e.prefill, "decode": e.decode} {
		for i, engine := range list {
			if upstream == fmt.Sprintf("%s#%d", stage, i+1) {
				return engine, true
			}
		}
	}
	return nil, false
}

// drain waits a short time for running requests. Caddy itself waits for them only if it
// ends the process.
func (e *engines) drain() {
	const (
		patience = 3 * time.Second
		glance   = 10 * time.Millisecond
		glances  = 3 // a request between two stages is at no engine
	)
	deadline := time.Now().Add(patience)
	for idle := 0; idle < glances && time.Now().Before(deadline); time.Sleep(glance) {
		idle++
		for _, engine := range e.all() {
			if engine.InFlight() > 0 {
				idle = 0
			}
		}
	}
}

func (e *engines) close() {
	for _, engine := range e.all() {
		engine.Close()
	}
}
