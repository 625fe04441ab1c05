package engine

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func TestNames(t *testing.T) {
	t.Parallel()
	p, err := newPool(t, "encode", `{"upstreams":[{"dial":"e:1"},{"dial":"gpu-7.internal:8001"},{"dial":"unix//run/engine.sock"},{"dial":"gpu-7.internal:8002"}],"health_checks":{"active":{}}}`)
	require.NoError(t, err)
	dynamic, err := newPool(t, "decode", `{"dynamic_upstreams":{"source":"a","name":"d","port":"1"}}`)
	require.NoError(t, err)
	p.Logger, dynamic.Logger = zap.NewNop(), zap.NewNop()
	assert.Equal(t, "encode#1", p.Name("e:1"))
	assert.Equal(t, "encode#2", p.Name("gpu-7.internal:8001"))
	assert.Empty(t, p.Name(""))
	assert.Regexp(t, "^decode#[0-9a-f]{6}$", dynamic.Name("10.0.0.1:1"))
	assert.NotEqual(t, dynamic.Name("10.0.0.1:1"), dynamic.Name("10.0.0.2:1"))

	a := &Attempt{Chosen: []string{"gpu-7.internal:8001", "e:1"}}
	for text, want := range map[string]string{
		"dial tcp 10.1.2.3:8001: connect: connection refused":                                     "dial tcp …: connect: connection refused",
		"dial tcp: lookup gpu-7.internal on 10.255.255.53:53: no such host":                       "dial tcp: lookup encode#2 on …: no such host",
		"read tcp [fd00::1]:5->[fd00::2%eth0]:8001: read: connection reset by peer":               "read tcp …->…: read: connection reset by peer",
		"tls: failed to verify certificate: x509: certificate is valid for a, not gpu-7.internal": "tls: failed to verify certificate: x509: certificate is not valid for encode#2",
		"x509: cannot validate certificate for fd00::7:1 because it doesn't contain any IP SANs":  "x509: cannot validate certificate for … because it doesn't contain any IP SANs",
		"dial unix /run/engine.sock: connect: no such file or directory":                          "dial unix encode#3: connect: no such file or directory",
		"lookup consul.internal: i/o timeout, asking consul.internal:8500":                        "lookup … i/o timeout, asking …",
		"dial tcp: lookup other.gpu-7.internal.: no such host":                                    "dial tcp: lookup … no such host",
		"dial tcp gpu-7.internal:8002->gpu-7.internal:8001: refused":                              "dial tcp encode#4->encode#2: refused",
		"the answer broke off": "the answer broke off",
	} {
		assert.Equal(t, want, p.WithoutAddresses(errors.New(text), a))
	}
	assert.Empty(t, p.WithoutAddresses(nil, a))

	p.Logger = zap.NewExample() // which has debug logging on
	assert.Equal(t, "encode#1=e:1", p.Name("e:1"))
	assert.Equal(t, "dial tcp 10.1.2.3:8001", p.WithoutAddresses(errors.New("dial tcp 10.1.2.3:8001"), a))
}
