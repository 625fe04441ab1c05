// Package fakevllm runs fake vLLM engines that enforce the EPD contract.
//
// A proxy for disaggregated multimodal serving sends every media item to an
// encode engine, the whole request to a prefill engine (optional), and the
// whole request again to a decode engine. The engines here speak that protocol
// over real sockets but compute nothing. What makes them useful is what they
// refuse: a consumer answers 500 when the embedding of a media item was never
// encoded with the same processing options, KV blocks can be read once and only
// by the request that they were computed for, and each request is checked down
// to its headers. A proxy that is wrong gets an error that says why.
//
//	cluster := fakevllm.NewCluster()
//	encoder, err := cluster.Start(fakevllm.Options{Role: fakevllm.Encode})
//	...
//	decoder, err := cluster.Start(fakevllm.Options{Role: fakevllm.Decode})
//	...
//	// Point the proxy at encoder.Addr() and decoder.Addr(), send it a request, and compare:
//	want, err := fakevllm.Answer(requestBody)
//	got, err := fakevllm.Text(responseBody, false)
//
// An engine reports what it saw: [Engine.Requests], [Engine.Refusals] (requests
// that broke the contract, also those a retry has hidden from the client) and
// [Engine.Cancellations]. It fails on demand: [Engine.SetFault], [Engine.Kill]
// and [Engine.Restart].
package fakevllm
