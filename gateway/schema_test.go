package gateway_test

import (
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

var schemas = sync.OnceValues(func() (openapi3.Schemas, error) {
	doc, err := openapi3.NewLoader().LoadFromFile("testdata/openai.yaml")
	if err != nil {
		return nil, err
	}
	return doc.Components.Schemas, nil
})

// validate holds a JSON value against one of the API's shapes.
func validate(t testing.TB, shape, data string) {
	t.Helper()
	all, err := schemas()
	if err != nil {
		t.Fatal(err)
	}
	if err := all[shape].Value.VisitJSON(decode[any](t, data)); err != nil {
		t.Errorf("not a valid %s: %v\n%s", shape, err, data)
	}
}

// TestSchemasRefuse proves that the shapes can fail.
func TestSchemasRefuse(t *testing.T) {
	all, err := schemas()
	if err != nil {
		t.Fatal(err)
	}
	for shape, bad := range map[string]string{
		"Error":               `{"error":{"message":"x","type":"server_error","param":null}}`,
		"ChatCompletion":      `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":null,"logprobs":null,"message":{"role":"assistant","content":"","refusal":null}}]}`,
		"ChatCompletionChunk": `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"finish_reason":"end","delta":{}}]}`,
		"Completion":          `{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop","text":"x"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`,
		"CompletionChunk":     `{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":null,"logprobs":{"tokens":[]},"text":"x"}]}`,
		"Model":               `{"id":"x","object":"models","created":1,"owned_by":"y"}`,
	} {
		if all[shape].Value.VisitJSON(decode[any](t, bad)) == nil {
			t.Errorf("%s lets %s pass", shape, bad)
		}
	}
}
