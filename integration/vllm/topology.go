//go:build unix

package main

import (
	"slices"
	"strings"
)

// topology is the engines behind the proxy, and the proxy's configuration.
type topology struct {
	name                    string
	encode, prefill, decode []string // names of engines
	options                 string   // of epd_proxy
	each                    string   // options of each pool
	since                   release
	quick                   bool // part of the short run
}

// topologies are in an order that needs few starts and stops of engines.
var topologies = []topology{
	{name: "E+PD", encode: list("e1"), decode: list("pd1"), quick: true},
	{name: "E+PD, references, encode_batch", encode: list("e1"), decode: list("pd1"), options: "references\nencode_batch 8", since: "0.31.0"},
	{name: "E+PD, references", encode: list("e1"), decode: list("pd1"), options: "references", since: "0.30.0"},
	{name: "2E+2PD", encode: list("e1 e2"), decode: list("pd1 pd2")},
	{name: "2E+2PD, references, encode_batch", encode: list("e1 e2"), decode: list("pd1 pd2"), options: "references\nencode_batch 8", since: "0.31.0"},
	{name: "E+P+D", encode: list("e1"), prefill: list("p1"), decode: list("d1"), quick: true},
	{name: "E+P+D, references, encode_batch", encode: list("e1"), prefill: list("p1"), decode: list("d1"), options: "references\nencode_batch 8", since: "0.31.0"},
	{name: "E+P+D, references, decode_has_embeddings", encode: list("e1"), prefill: list("p1"), decode: list("de1"), options: "references\ndecode_has_embeddings", since: "0.30.0"},
}

// withoutNIXL are releases whose NixlConnector does not start on CPUs: 0.24 does not know the layout
// of blocks there, and 0.11 finds no UCX in the NIXL of its time.
var withoutNIXL = []release{"0.24.0", "0.11.1.post2"}

// has reports whether a release supports a topology on CPUs.
func (r release) has(t topology) bool {
	return r.since(t.since) && (len(t.prefill) == 0 || !slices.Contains(withoutNIXL, r))
}

// topologiesOf are the chosen topologies that a release supports.
func (s *suite) topologiesOf(r release) []topology {
	return slices.DeleteFunc(slices.Clone(s.topologies), func(t topology) bool { return !r.has(t) })
}

func list(names string) []string { return strings.Fields(names) }

// engines are the names of all engines.
func (t topology) engines() []string { return slices.Concat(t.encode, t.prefill, t.decode) }

// block is the configuration of epd_proxy.
func (t topology) block(f *fleet) string {
	return block(f.addrs(t.encode), f.addrs(t.prefill), f.addrs(t.decode), t.each, t.options)
}
