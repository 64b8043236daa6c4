package gateway_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/quire-serve/quire/gateway/gatewaytest"
)

// metric finds a series' value.
func metric(t testing.TB, page, series string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		t.Errorf("there is no %s", series)
		return -1
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Error(err)
	}
	return v
}

// TestMetrics serves a known load and reads every number back, under our names and others'.
func TestMetrics(t *testing.T) {
	d := open(t, gatewaytest.Options{Reply: gatewaytest.Say("12345")})
	d.post(textPath, `{"model":"test","prompt":"`+strings.Repeat("p", 40)+`","n":2}`) // 2 × 6 tokens, stop
	d.post(textPath, `{"model":"test","prompt":"abc","max_tokens":3}`)                // 3 tokens, length
	d.post(textPath, `{"model":"test","prompt":"abc","max_tokens":-3}`)
	page := d.do("GET", "/metrics", "")
	if ct := page.header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Errorf("content type %q", ct)
	}
	const own, vllm = `{model_name="test"}`, `{engine="0",model_name="test"}`
	for series, want := range map[string]float64{
		"quire_prompt_tokens_total" + own:                                                               43,
		"quire_generated_tokens_total" + own:                                                            15,
		"vllm:prompt_tokens_total" + vllm:                                                               43,
		"vllm:generation_tokens_total" + vllm:                                                           15,
		`quire_requests_total{finished_reason="stop",model_name="test"}`:                                1,
		`vllm:request_success_total{engine="0",finished_reason="length",model_name="test"}`:             1,
		`quire_requests_total{finished_reason="error",model_name="test"}`:                               0,
		"vllm:time_to_first_token_seconds_count" + vllm:                                                 2,
		"vllm:e2e_request_latency_seconds_count" + vllm:                                                 2,
		"vllm:request_time_per_output_token_seconds_count" + vllm:                                       2,
		"vllm:request_queue_time_seconds_sum" + vllm:                                                    0.002,
		"vllm:request_prefill_time_seconds_sum" + vllm:                                                  0.004,
		"vllm:request_decode_time_seconds_count" + vllm:                                                 2,
		"vllm:request_inference_time_seconds_count" + vllm:                                              2,
		"vllm:request_prompt_tokens_sum" + vllm:                                                         43,
		"vllm:request_generation_tokens_sum" + vllm:                                                     15,
		"vllm:request_max_num_generation_tokens_sum" + vllm:                                             9,
		"vllm:request_params_n_sum" + vllm:                                                              3,
		"vllm:request_params_max_tokens_sum" + vllm:                                                     19,
		"vllm:num_requests_running" + vllm:                                                              0,
		"vllm:num_requests_waiting" + vllm:                                                              0,
		"vllm:kv_cache_usage_perc" + vllm:                                                               0,
		"vllm:gpu_cache_usage_perc" + vllm:                                                              0,
		"vllm:prefix_cache_queries_total" + vllm:                                                        43,
		"vllm:prefix_cache_hits_total" + vllm:                                                           16,
		"vllm:gpu_prefix_cache_hits_total" + vllm:                                                       16,
		"vllm:num_preemptions_total" + vllm:                                                             0,
		"vllm:spec_decode_num_drafts_total" + vllm:                                                      3,
		"vllm:spec_decode_num_draft_tokens_total" + vllm:                                                7,
		"vllm:spec_decode_num_accepted_tokens_total" + vllm:                                             3,
		`vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="test",position="1"}`: 1,
		"vllm:iteration_tokens_total_sum" + vllm:                                                        58,
		"quire_workers_ready" + own:                                                                     1,
		"quire_gateway_requests":                                                                        0,
		`quire_http_requests_total{code="200",route="/v1/completions"}`:                                 2,
		`quire_http_requests_total{code="400",route="/v1/completions"}`:                                 1,
		`vllm:cache_config_info{block_size="16",engine="0",model_name="test",num_gpu_blocks="4096"}`:    1,
	} {
		if got := metric(t, page.body, series); got != want {
			t.Errorf("%s is %g, want %g", series, got, want)
		}
	}
	// Tokens that come together, as those do that came before the commit, leave no gap to measure.
	for _, series := range []string{"vllm:inter_token_latency_seconds_count" + vllm, "vllm:time_per_output_token_seconds_count" + vllm} {
		if got := metric(t, page.body, series); got < 1 || got > 12 {
			t.Errorf("%s is %g, want 1 to 12", series, got)
		}
	}
}

// TestMetricsWhileRunning looks at the gauges in the middle of a request.
func TestMetricsWhileRunning(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true, TotalBlocks: 10})
	d.Step(1)
	s := d.stream(textPath, `{"model":"test","prompt":"0123456789abcdef0","stream":true,"max_tokens":20}`)
	s.next()
	page := d.do("GET", "/metrics", "").body
	const vllm = `{engine="0",model_name="test"}`
	if got := metric(t, page, "vllm:num_requests_running"+vllm); got != 1 {
		t.Errorf("%g running", got)
	}
	if got := metric(t, page, "vllm:kv_cache_usage_perc"+vllm); got != 0.2 {
		t.Errorf("%g of the cache in use", got)
	}
	if got := metric(t, page, "quire_gateway_requests"); got != 1 {
		t.Errorf("%g at the gateway", got)
	}
}

// TestWhatWaitsCounts: requests in the leader's queue wait, under vLLM's name too, which scaling goes by.
func TestWhatWaitsCounts(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	d.Queue(17)
	await(t, func() bool {
		return strings.Contains(d.do("GET", "/metrics", "").body, "\nquire_queue_requests{model_name=\"test\"} 17\n")
	})
	if got := metric(t, d.do("GET", "/metrics", "").body, `vllm:num_requests_waiting{engine="0",model_name="test"}`); got != 17 {
		t.Errorf("%g wait", got)
	}
}

// TestTenantSeriesAreBounded: tenants are named by clients, so that only the first have series of their own.
func TestTenantSeriesAreBounded(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	for i := range 105 {
		d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":1}`, "X-Quire-Tenant", "t"+strconv.Itoa(i))
	}
	page := d.do("GET", "/metrics", "").body
	if n := strings.Count(page, "\nquire_tenant_requests_total{"); n != 101 {
		t.Errorf("%d series", n)
	}
	if got := metric(t, page, `quire_tenant_requests_total{tenant="other"}`); got != 5 {
		t.Errorf("%g of others", got)
	}
	if got := metric(t, page, `quire_tenant_tokens_total{kind="output",tenant="t7"}`); got != 1 {
		t.Errorf("%g tokens of one", got)
	}
}

// TestPages checks the small pages.
func TestPages(t *testing.T) {
	d := open(t, gatewaytest.Options{}, frozen)
	for path, want := range map[string]string{
		"/v1/models":      `{"object":"list","data":[{"id":"test","object":"model","created":1700000000,"owned_by":"quire","max_model_len":2048,"ready":true}]}` + "\n",
		"/v1/models/test": `{"id":"test","object":"model","created":1700000000,"owned_by":"quire","max_model_len":2048,"ready":true}` + "\n",
		"/version":        `{"version":"1.2.3"}` + "\n",
	} {
		if r := d.do("GET", path, ""); r.status != 200 || r.body != want {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
	validate(t, "ModelList", d.do("GET", "/v1/models", "").body)
	validate(t, "Model", d.do("GET", "/v1/models/test", "").body)
}
