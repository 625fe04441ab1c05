//go:build unix

package main

import (
	"fmt"
	"regexp"
)

// deliberate is an intended difference between the proxy and a single engine that runs all stages.
type deliberate struct {
	names  string // regular expression for names of requests
	where  string // regular expression for "release, model, topology"; empty: everywhere
	single string // outcome of the single engine
	proxy  string // outcome of the proxy
	reason string
}

const (
	badRequest = "400"
	failedLate = "200, " + failedEvent
)

// differences are all intended ones. Any other difference is an error.
var differences = []deliberate{
	{
		names: `^(a schema that cannot be|a broken regex|logit_bias out of range|allowed_token_ids empty) \(stream\)$`, single: failedLate, proxy: badRequest,
		reason: "vLLM finds the error after it has begun the stream; the proxy waits for the first event, and can send the real status",
	},
	{
		names: `^a list$`, where: `^0\.(11|24)\.`, single: "500", proxy: badRequest,
		reason: "older vLLM fails on a body that is not an object",
	},
}

// outcome is how an answer ended.
func outcome(a answer) string {
	switch {
	case a.Status == 0:
		return "no answer: " + a.Failed
	case a.Failed != "":
		return fmt.Sprintf("%d, %s", a.Status, a.Failed)
	}
	return fmt.Sprint(a.Status)
}

// reason returns why a difference is intended; empty if it is not.
func reason(where, name string, single, proxy answer) string {
	for _, d := range differences {
		if d.single == outcome(single) && d.proxy == outcome(proxy) &&
			regexp.MustCompile(d.names).MatchString(name) && regexp.MustCompile(d.where).MatchString(where) {
			return d.reason
		}
	}
	return ""
}
