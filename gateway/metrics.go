package gateway

import (
	"cmp"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Bucket bounds: those of vLLM where there is a metric of the same meaning, so that its dashboards
// and alerts read ours alike.
var (
	firstTokenBuckets = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	perTokenBuckets   = []float64{.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	requestBuckets    = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	tokenBuckets      = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000}
	requestGapBuckets = []float64{.01, .025, .05, .1, .15, .25, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60}
	choiceBuckets     = []float64{1, 2, 5, 10, 20, 50, 100, 128}
)

// aliases gives each of our metrics the names under which others' dashboards look for it. The time
// per output token has had three names in vLLM's history, and the cache usage two.
var aliases = map[string][]string{
	"quire_requests_running":              {"vllm:num_requests_running"},
	"quire_requests_waiting":              {"vllm:num_requests_waiting"},
	"quire_kv_cache_usage_ratio":          {"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"},
	"quire_prefix_cache_query_tokens":     {"vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"},
	"quire_prefix_cache_hit_tokens":       {"vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"},
	"quire_preemptions":                   {"vllm:num_preemptions"},
	"quire_drafts":                        {"vllm:spec_decode_num_drafts"},
	"quire_draft_tokens":                  {"vllm:spec_decode_num_draft_tokens"},
	"quire_accepted_draft_tokens":         {"vllm:spec_decode_num_accepted_tokens"},
	"quire_accepted_draft_tokens_at":      {"vllm:spec_decode_num_accepted_tokens_per_pos"},
	"quire_prompt_tokens":                 {"vllm:prompt_tokens"},
	"quire_generated_tokens":              {"vllm:generation_tokens"},
	"quire_requests":                      {"vllm:request_success"},
	"quire_request_prompt_tokens":         {"vllm:request_prompt_tokens"},
	"quire_request_generated_tokens":      {"vllm:request_generation_tokens"},
	"quire_request_longest_choice_tokens": {"vllm:request_max_num_generation_tokens"},
	"quire_request_choices":               {"vllm:request_params_n"},
	"quire_request_max_tokens":            {"vllm:request_params_max_tokens"},
	"quire_step_tokens":                   {"vllm:iteration_tokens_total"},
	"quire_time_to_first_token_seconds":   {"vllm:time_to_first_token_seconds"},
	"quire_inter_token_latency_seconds":   {"vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"},
	"quire_time_per_output_token_seconds": {"vllm:request_time_per_output_token_seconds"},
	"quire_request_duration_seconds":      {"vllm:e2e_request_latency_seconds"},
	"quire_request_queue_seconds":         {"vllm:request_queue_time_seconds"},
	"quire_request_prefill_seconds":       {"vllm:request_prefill_time_seconds"},
	"quire_request_decode_seconds":        {"vllm:request_decode_time_seconds"},
	"quire_request_inference_seconds":     {"vllm:request_inference_time_seconds"},
	"quire_kv_cache_info":                 {"vllm:cache_config_info"},
}

// meters are one model's metrics, resolved once.
type meters struct {
	timeToFirst, interToken, perToken, duration prometheus.Observer
	queue, prefill, decode, inference           prometheus.Observer
	promptTokens, generatedTokens, longest      prometheus.Observer
	choices, maxTokens                          prometheus.Observer
	prompt, generated, admissions               prometheus.Counter
	all                                         *metrics
	ended                                       map[string]prometheus.Counter
	// What went on where it did not begin.
	gap                                          prometheus.Observer
	resumed, replayed, adopted, recovered, rerun prometheus.Counter
}

// metrics is the gateway's registry. Every series carries model_name.
type metrics struct {
	registry   *prometheus.Registry
	histograms map[string]*prometheus.HistogramVec
	counters   map[string]*prometheus.CounterVec
	http, grpc *prometheus.CounterVec
	refusals   *prometheus.CounterVec

	mu      sync.Mutex
	tenants map[string]bool
}

// maxTenantSeries bounds the tenants that have series of their own.
const maxTenantSeries = 100

// tenant is the label of a tenant: its name, as long as there are not too many.
func (m *metrics) tenant(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.tenants[name] {
		if len(m.tenants) >= maxTenantSeries {
			return "other"
		}
		m.tenants[name] = true
	}
	return name
}

func newMetrics(g *Gateway) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), histograms: map[string]*prometheus.HistogramVec{}, counters: map[string]*prometheus.CounterVec{}, tenants: map[string]bool{}}
	for _, h := range []struct {
		name, help string
		buckets    []float64
	}{
		{"quire_time_to_first_token_seconds", "From a request's arrival at the gateway to its first token there.", firstTokenBuckets},
		{"quire_inter_token_latency_seconds", "Between two steps' tokens of one choice.", perTokenBuckets},
		{"quire_stream_gap_seconds", "Between the last token before a failover and the first after it.", requestGapBuckets},
		{"quire_time_per_output_token_seconds", "A request's mean time per token after its first.", perTokenBuckets},
		{"quire_request_duration_seconds", "From a request's arrival to its end.", requestBuckets},
		{"quire_request_queue_seconds", "From a request's dispatch to its first step, as the worker says.", requestBuckets},
		{"quire_request_prefill_seconds", "From a request's first step to its first token, as the worker says.", requestBuckets},
		{"quire_request_decode_seconds", "From a request's first token to its last.", requestBuckets},
		{"quire_request_inference_seconds", "From a request's first step to its last token.", requestBuckets},
		{"quire_request_prompt_tokens", "Tokens in a request's prompt.", tokenBuckets},
		{"quire_request_generated_tokens", "Tokens generated for a request, all choices together.", tokenBuckets},
		{"quire_request_longest_choice_tokens", "Tokens generated in a request's longest choice.", tokenBuckets},
		{"quire_request_choices", "Choices asked for.", choiceBuckets},
		{"quire_request_max_tokens", "Most tokens a choice may have.", tokenBuckets},
	} {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: h.name, Help: h.help, Buckets: h.buckets}, []string{"model_name"})
		m.histograms[h.name] = v
		m.registry.MustRegister(v)
	}
	for _, c := range []struct {
		name, help string
		labels     []string
	}{
		{"quire_prompt_tokens_total", "Prompt tokens of admitted requests.", []string{"model_name"}},
		{"quire_generated_tokens_total", "Tokens received from workers.", []string{"model_name"}},
		{"quire_requests_admitted_total", "Requests that the leader has taken.", []string{"model_name"}},
		{"quire_tenant_requests_total", "Requests of a tenant that ended; the first tenants have a name of their own, all others are \"other\".", []string{"tenant"}},
		{"quire_tenant_tokens_total", "Tokens of a tenant's ended requests, prompt and output.", []string{"tenant", "kind"}},
		{"quire_requests_total", "Requests that ended, by reason.", []string{"model_name", "finished_reason"}},
		{"quire_requests_continued_total", "Requests that went on where they did not begin, by how: resumed by a client after what it had, replayed from the start under the same id, adopted from another gateway, recovered after a failover, rerun because their output was not kept.", []string{"model_name", "how"}},
	} {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: c.name, Help: c.help}, c.labels)
		m.counters[c.name] = v
		m.registry.MustRegister(v)
	}
	m.http = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "quire_http_requests_total", Help: "HTTP requests answered, by route and status."}, []string{"route", "code"})
	m.grpc = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "quire_grpc_requests_total", Help: "Streaming gRPC calls of clients, by method and status."}, []string{"method", "code"})
	m.refusals = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "quire_refusals_total", Help: "Requests that were refused or ended with an error, by the code of the error or what the leader calls it."}, []string{"reason"})
	m.registry.MustRegister(m.http, m.grpc, m.refusals, &workerCollector{g}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(g.Collectors...)
	return m
}

// of resolves a model's series, so that they are there from the start and cost no lookup later.
func (m *metrics) of(model string) *meters {
	h := func(name string) prometheus.Observer { return m.histograms[name].WithLabelValues(model) }
	v := &meters{
		timeToFirst: h("quire_time_to_first_token_seconds"), interToken: h("quire_inter_token_latency_seconds"),
		perToken: h("quire_time_per_output_token_seconds"), duration: h("quire_request_duration_seconds"),
		queue: h("quire_request_queue_seconds"), prefill: h("quire_request_prefill_seconds"),
		decode: h("quire_request_decode_seconds"), inference: h("quire_request_inference_seconds"),
		promptTokens: h("quire_request_prompt_tokens"), generatedTokens: h("quire_request_generated_tokens"),
		longest: h("quire_request_longest_choice_tokens"), choices: h("quire_request_choices"), maxTokens: h("quire_request_max_tokens"),
		prompt:    m.counters["quire_prompt_tokens_total"].WithLabelValues(model),
		generated: m.counters["quire_generated_tokens_total"].WithLabelValues(model),
		ended:     map[string]prometheus.Counter{},
		all:       m,
	}
	v.admissions = m.counters["quire_requests_admitted_total"].WithLabelValues(model)
	v.gap = h("quire_stream_gap_seconds")
	for how, counter := range map[string]*prometheus.Counter{
		"resumed": &v.resumed, "replayed": &v.replayed, "adopted": &v.adopted, "recovered": &v.recovered, "rerun": &v.rerun,
	} {
		*counter = m.counters["quire_requests_continued_total"].WithLabelValues(model, how)
	}
	for _, reason := range []string{"stop", "length", "abort", "error"} {
		v.ended[reason] = m.counters["quire_requests_total"].WithLabelValues(model, reason)
	}
	return v
}

// refused counts an error that a client was told, or would have been.
func (m *metrics) refused(e *apiError) {
	m.refusals.WithLabelValues(cmp.Or(e.reason, e.name)).Inc()
}

// admitted records what a request asked for.
func (m *meters) admitted(l *live) {
	m.admissions.Inc()
	m.prompt.Add(float64(len(l.request.Prompt)))
	m.promptTokens.Observe(float64(len(l.request.Prompt)))
	m.choices.Observe(float64(len(l.choices)))
	m.maxTokens.Observe(float64(l.request.Sampling.MaxTokens))
}

// observe records how a request that ran here went; now is its end.
func (l *live) observe(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.counted {
		return
	}
	m := l.meters
	total, longest := 0, 0
	last := l.firstToken
	for i := range l.choices {
		n := len(l.choices[i].tokens)
		total, longest = total+n, max(longest, n)
		if l.choices[i].last.After(last) {
			last = l.choices[i].last
		}
	}
	reason := "abort"
	switch {
	case l.failure != nil && l.failure.name != "request_cancelled":
		reason = "error"
	case l.failure == nil && l.choices[0].finish == pb.FinishReason_FINISH_REASON_STOP:
		reason = "stop"
	case l.failure == nil:
		reason = "length"
	}
	m.ended[reason].Inc()
	tenant := m.all.tenant(l.request.Tenant)
	m.all.counters["quire_tenant_requests_total"].WithLabelValues(tenant).Inc()
	tokens := m.all.counters["quire_tenant_tokens_total"]
	tokens.WithLabelValues(tenant, "prompt").Add(float64(l.promptTokens))
	tokens.WithLabelValues(tenant, "output").Add(float64(total))
	m.duration.Observe(now.Sub(l.arrived).Seconds())
	if total == 0 {
		return
	}
	decode := last.Sub(l.firstToken).Seconds()
	m.generatedTokens.Observe(float64(total))
	m.longest.Observe(float64(longest))
	m.decode.Observe(decode)
	if longest > 1 {
		m.perToken.Observe(decode / float64(longest-1))
	}
	if l.prefilled > 0 {
		m.inference.Observe(l.prefilled.Seconds() + decode)
	}
}

// workerCollector reports what workers say of themselves, summed by model, and what the leader says.
type workerCollector struct{ g *Gateway }

var (
	modelLabel   = []string{"model_name"}
	descRunning  = prometheus.NewDesc("quire_requests_running", "Requests in workers' batches.", modelLabel, nil)
	descWaiting  = prometheus.NewDesc("quire_requests_waiting", "Requests that wait, in the leader's queue and at workers.", modelLabel, nil)
	descQueued   = prometheus.NewDesc("quire_queue_requests", "Requests in the leader's queue, as it said last.", modelLabel, nil)
	descUsage    = prometheus.NewDesc("quire_kv_cache_usage_ratio", "Share of KV cache blocks in use, 0 to 1.", modelLabel, nil)
	descTier     = prometheus.NewDesc("quire_kv_tier_blocks", "KV blocks held below the device.", []string{"model_name", "tier"}, nil)
	descAccepted = prometheus.NewDesc("quire_accepted_draft_tokens_total", "Tokens guessed ahead that were right.", modelLabel, nil)
	descPlace    = prometheus.NewDesc("quire_accepted_draft_tokens_at_total", "Tokens guessed ahead that were right, by their place among a step's.", []string{"model_name", "position"}, nil)
	descSteps    = prometheus.NewDesc("quire_step_tokens", "Tokens computed a step.", modelLabel, nil)
	descInfo     = prometheus.NewDesc("quire_kv_cache_info", "Always 1; the labels say how the KV cache is cut.", []string{"model_name", "block_size", "num_gpu_blocks"}, nil)
	descTakes    = prometheus.NewDesc("quire_model_ready", "1 if requests for the model are taken, 0 if they are refused.", modelLabel, nil)
	descReady    = prometheus.NewDesc("quire_workers_ready", "Workers attached to this gateway.", modelLabel, nil)
	descBodies   = prometheus.NewDesc("quire_gateway_body_bytes", "Memory taken by the HTTP bodies that are being read and parsed.", nil, nil)
	descInUse    = prometheus.NewDesc("quire_gateway_requests", "Sequences that this gateway is serving: one for each choice of each prompt.", nil, nil)
)

func (c *workerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRunning, descWaiting, descQueued, descUsage, descTier, descAccepted, descPlace, descSteps, descInfo, descReady, descTakes, descBodies, descInUse} {
		ch <- d
	}
	for _, c := range workerCounters {
		if c.desc != nil {
			ch <- c.desc
		}
	}
}

func (c *workerCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descBodies, prometheus.GaugeValue, float64(c.g.bodies.held.Load()))
	ch <- prometheus.MustNewConstMetric(descInUse, prometheus.GaugeValue, float64(c.g.inUse.Load()))
	queued := map[string]int64{}
	for _, q := range c.g.queued.Load().GetModels() {
		queued[q.Name] = q.Requests
	}
	for _, m := range c.g.order {
		var now pb.WorkerStats
		ready := 0
		for _, a := range c.g.workers.list() {
			connected, s := a.snapshot()
			if a.info.Model != m.ID || !connected {
				continue
			}
			ready++
			if s == nil {
				continue
			}
			now.Running += s.Running
			now.Waiting += s.Waiting
			now.FreeBlocks += s.FreeBlocks
			now.TotalBlocks += s.TotalBlocks
			now.BlockTokens = s.BlockTokens
			now.HostBlocks += s.HostBlocks
			now.DiskBlocks += s.DiskBlocks
		}
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{m.ID}, labels...)...)
		}
		counter := func(d *prometheus.Desc, v int64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append([]string{m.ID}, labels...)...)
		}
		usage := 0.0
		if now.TotalBlocks > 0 {
			usage = float64(now.TotalBlocks-now.FreeBlocks) / float64(now.TotalBlocks)
		}
		takes := 0.0
		if c.g.refused(m) == "" {
			takes = 1
		}
		gauge(descReady, float64(ready))
		gauge(descTakes, takes)
		gauge(descRunning, float64(now.Running))
		gauge(descQueued, float64(queued[m.ID]))
		gauge(descWaiting, float64(int64(now.Waiting)+queued[m.ID]))
		gauge(descUsage, usage)
		gauge(descTier, float64(now.HostBlocks), "host")
		gauge(descTier, float64(now.DiskBlocks), "disk")
		gauge(descInfo, 1, strconv.Itoa(int(now.BlockTokens)), strconv.Itoa(int(now.TotalBlocks)))
		sum := c.g.totals.of(m.ID)
		for _, c := range workerCounters {
			if c.desc != nil {
				counter(c.desc, *c.of(sum))
			}
		}
		accepted := int64(0)
		for i, n := range sum.AcceptedDraftTokens {
			accepted += n
			counter(descPlace, n, strconv.Itoa(i))
		}
		counter(descAccepted, accepted)
		// Workers count steps and tokens, not their distribution: a histogram of one bucket.
		ch <- prometheus.MustNewConstHistogram(descSteps, uint64(sum.Steps), float64(sum.StepTokens), nil, m.ID)
	}
}

// gather is the registry's content and, of every metric that has aliases, copies under those names
// with vLLM's engine label.
func (m *metrics) gather() ([]*dto.MetricFamily, error) {
	families, err := m.registry.Gather()
	for _, f := range slices.Clone(families) {
		base, suffix := f.GetName(), ""
		if f.GetType() == dto.MetricType_COUNTER && len(base) > len("_total") {
			base, suffix = base[:len(base)-len("_total")], "_total"
		}
		for _, alias := range aliases[base] {
			twin := &dto.MetricFamily{Name: proto.String(alias + suffix), Help: f.Help, Type: f.Type}
			for _, metric := range f.Metric {
				c := &dto.Metric{Gauge: metric.Gauge, Counter: metric.Counter, Histogram: metric.Histogram}
				c.Label = append(slices.Clone(metric.Label), &dto.LabelPair{Name: proto.String("engine"), Value: proto.String("0")})
				sort.Slice(c.Label, func(i, j int) bool { return c.Label[i].GetName() < c.Label[j].GetName() })
				twin.Metric = append(twin.Metric, c)
			}
			families = append(families, twin)
		}
	}
	sort.Slice(families, func(i, j int) bool { return families[i].GetName() < families[j].GetName() })
	return families, err
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(prometheus.GathererFunc(m.gather), promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
