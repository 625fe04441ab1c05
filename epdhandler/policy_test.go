package epdhandler

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// named starts decode engines that answer with their number, the request target and a header.
func named(t *testing.T, n int) (addresses []string) {
	for i := range n {
		addresses = append(addresses, fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprintf(w, "%d %s %s", i, r.RequestURI, r.Header.Get("X-Seen"))
		}))
	}
	return addresses
}

// upstreamsOf are a pool's upstreams, as JSON.
func upstreamsOf(addresses []string) string {
	return `"upstreams":[{"dial":"` + strings.Join(addresses, `"},{"dial":"`) + `"}]`
}

// Policies and placeholders see the client's request as in reverse_proxy, including its query;
// engines get no query.
func TestPoliciesSeeTheRequest(t *testing.T) {
	addresses := named(t, 8)
	for policy, key := range map[string]string{
		`{"policy":"query","key":"user"}`:         "?user=%d",
		`{"policy":"uri_hash"}`:                   "?user=%d",
		`{"policy":"header","field":"X-Session"}`: "X-Session: %d",
		`{"policy":"header","field":"Host"}`:      "",
		`{"policy":"ip_hash"}`:                    "",
		`{"policy":"client_ip_hash"}`:             "",
	} {
		port := freePort(t)
		serve(t, port, fmt.Sprintf(`,"decode":{%s,"load_balancing":{"selection_policy":%s},
			"headers":{"request":{"set":{"X-Seen":["{http.request.uri.query.user} {http.request.uri}"]}}}}`, upstreamsOf(addresses), policy), pools{"encode": addresses[:1]})
		chosen := map[string]bool{}
		for user := range 20 {
			path, headers := chatPath, []string(nil)
			switch {
			case strings.HasPrefix(key, "?"):
				path += fmt.Sprintf(key, user)
			case key != "":
				headers = []string{fmt.Sprintf(key, user)}
			}
			_, first, _ := post(t, port, path, "x", headers...)
			for range 3 {
				_, again, _ := post(t, port, path, "x", headers...)
				assert.Equal(t, first, again, policy)
			}
			fields := strings.Fields(first)
			assert.Equal(t, chatPath, fields[1], policy)
			if strings.HasPrefix(key, "?") {
				assert.Equal(t, fmt.Sprintf("%d %s", user, path), strings.Join(fields[2:], " "), policy)
			}
			chosen[fields[0]] = true
		}
		if key == "" {
			assert.Len(t, chosen, 1, policy)
		} else {
			assert.Greater(t, len(chosen), 3, policy)
		}
	}
}

// Changes that a pool's block makes to the target reach its engines.
func TestRewriteInAPool(t *testing.T) {
	addresses := named(t, 1)
	for rewrite, want := range map[string]string{
		`{"uri":"/engine{http.request.uri.path}"}`:                         "/engine" + chatPath,
		`{"uri":"/engine{http.request.uri}"}`:                              "/engine" + chatPath,
		`{"uri":"/engine{http.request.uri.path}?key=k"}`:                   "/engine" + chatPath + "?key=k",
		`{"uri":"{http.request.uri.path}?{http.request.uri.query}&key=k"}`: chatPath + "?user=1&key=k",
	} {
		port := freePort(t)
		serve(t, port, fmt.Sprintf(`,"decode":{%s,"rewrite":%s}`, upstreamsOf(addresses), rewrite), pools{"encode": addresses})
		_, answer, _ := post(t, port, chatPath+"?user=1", "x")
		assert.Equal(t, want, strings.Fields(answer)[1], rewrite)
	}
}

// All that have a weight are busy: that is a reason to wait, and none to go elsewhere.
func TestWeightsAndLimits(t *testing.T) {
	for weights, drained := range map[string]int{"1,0": 1, "0,1": 0} {
		instances := []*holder{newHolder(t), newHolder(t)}
		port := hostileDecode(t, `,"retries":1,"decode_limit":1`, fmt.Sprintf(`{%s,"load_balancing":{"selection_policy":{"policy":"weighted_round_robin","weights":[%s]}}}`,
			upstreamsOf([]string{instances[0].address, instances[1].address}), weights))
		one := instances[1-drained]
		held := inBackground(t, port, "held")
		<-one.arrived
		second := inBackground(t, port, "x")
		waitFor(t, 1)
		close(one.release)
		assert.Equal(t, http.StatusOK, (<-held).status)
		assert.Equal(t, http.StatusOK, (<-second).status)
		assert.Zero(t, instances[drained].peak.Load(), weights)
	}
}
