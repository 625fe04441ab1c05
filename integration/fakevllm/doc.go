// Package fakevllm runs fake vLLM engines that enforce the EPD contract.
//
// A proxy for disaggregated multimodal serving sends every media item to an
// encode engine, the whole request to a prefill engine (optional), and the
// whole request again to a decode engine. The engines here speak that protocol
// over real sockets but compute nothing. They detect errors of the proxy: a
// consumer answers 500 if the embedding of a media item was never encoded with
// the same processing options, KV blocks can be read once and only by the
// request that they were computed for, and the headers and body of each request
// are checked. The error says what was wrong.
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
// The engines accept and reject the options of a request as vLLM 0.32.0 does: with the same
// status or, if a stream has begun by then, with an error event.
//
// Engines are of vLLM 0.11.1 unless [Options] makes them Modern,
// of vLLM 0.31.0. A modern encoder takes several images in one request, uuids
// on its items, and the consumer to deliver to; it answers with the shape of each
// embedding. A modern consumer takes references: a part such as
//
//	{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,36,36]},"uuid":"…"}
//
// stands for the item that was encoded under this uuid, and the engine treats it
// like the item itself. What was delivered to a consumer can be consumed
// only there, once for each transfer id.
//
// An engine records what it received: [Engine.Requests], [Engine.Refusals] (requests
// that broke the contract, including those that the proxy has retried) and
// [Engine.Cancellations]. It can be made to fail: [Engine.SetFault], [Engine.Kill]
// and [Engine.Restart].
package fakevllm
