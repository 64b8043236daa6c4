package replay

import (
	"bytes"
	"testing"
)

func sane(t *testing.T, list []Request) {
	for _, q := range list {
		if q.Input < 0 || q.Input > maxTokens || q.Output < 0 || q.Output > maxTokens {
			t.Fatalf("accepted %+v", q)
		}
	}
}

func FuzzAzure(f *testing.F) {
	f.Add([]byte("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"))
	f.Add([]byte("TIMESTAMP,ContextTokens,GeneratedTokens\n\"2023"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if list, err := Azure(bytes.NewReader(data)); err == nil {
			sane(t, list)
		}
	})
}

func FuzzMooncake(f *testing.F) {
	f.Add([]byte(`{"timestamp": 40, "input_length": 600, "output_length": 3, "hash_ids": [151, 152]}` + "\n"))
	f.Add([]byte("\n{}\n[]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Mooncake(bytes.NewReader(data))
		if err != nil {
			return
		}
		sane(t, list)
		for _, q := range list {
			if len(q.Blocks) != (q.Input+MooncakeBlockTokens-1)/MooncakeBlockTokens {
				t.Fatalf("accepted %+v", q)
			}
		}
	})
}
