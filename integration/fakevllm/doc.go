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
// They take and refuse the options of a request as vLLM 0.32.0 does: with the same status or, if
// a stream has begun by then, with an event.
//
// Engines are of vLLM 0.11.1 unless [Options] makes them Modern,
// of vLLM 0.31.0. A modern encoder takes several images in one request, uuids
// on its items, and the consumer to deliver to; it answers with the shape of each
// embedding. A modern consumer takes references: a part such as
//
//	{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,36,36]},"uuid":"…"}
//
// is the item that was encoded under this uuid, and nothing that the engine does
// with it tells the two apart. What was delivered to a consumer can be consumed
// there alone, once for each transfer id.
//
// An engine reports what it saw: [Engine.Requests], [Engine.Refusals] (requests
// that broke the contract, also those a retry has hidden from the client) and
// [Engine.Cancellations]. It fails on demand: [Engine.SetFault], [Engine.Kill]
// and [Engine.Restart].
package fakevllm
