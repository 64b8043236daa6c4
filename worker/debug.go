package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/quire-serve/quire/worker/engine"
)

// debugTimeout is how long the engine may take to answer between two steps.
const debugTimeout = 10 * time.Second

// stepRecord is a step's trace as one line of /debug/steps.
type stepRecord struct {
	Step       uint64       `json:"step"`
	Decodes    int          `json:"decodes"`
	Prefills   int          `json:"prefills"`
	Rows       int          `json:"rows"`
	Drafts     int          `json:"drafts"`
	Running    int          `json:"running"`
	Waiting    int          `json:"waiting"`
	FreeBlocks int          `json:"free_blocks"`
	CopiedUp   int          `json:"copied_up"`
	CopiedDown int          `json:"copied_down"`
	PlanUS     float64      `json:"plan_us"`
	Notes      []noteRecord `json:"notes,omitempty"`
}

type noteRecord struct {
	Request string `json:"request"`
	Choice  int32  `json:"choice,omitempty"`
	What    string `json:"what"`
	N       int    `json:"n"`
	For     string `json:"for,omitempty"`
	Why     string `json:"why"`
}

func record(t engine.StepTrace) stepRecord {
	r := stepRecord{
		Step: t.Step, Decodes: t.Decodes, Prefills: t.Prefills, Rows: t.Rows, Drafts: t.Drafts, Running: t.Running, Waiting: t.Waiting,
		FreeBlocks: t.FreeBlocks, CopiedUp: t.CopiedUp, CopiedDown: t.CopiedDown, PlanUS: float64(t.Plan.Nanoseconds()) / 1000,
	}
	for _, n := range t.Notes {
		r.Notes = append(r.Notes, noteRecord{n.RequestID, n.Choice, n.Reason.String(), n.N, n.For, n.Reason.Why()})
	}
	return r
}

// Debug serves what is of use to whoever looks into a worker: /debug/steps, the newest steps as JSON
// lines (?n= bounds how many, at most those kept), oldest first; /debug/stats, the worker's figures;
// /debug/pprof/. It names requests and is not for strangers. It answers while Run runs.
func (w *Worker) Debug() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/steps", w.debugSteps)
	mux.HandleFunc("GET /debug/stats", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(w.Stats()) // the reader is gone: nobody to tell
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func (w *Worker) debugSteps(rw http.ResponseWriter, r *http.Request) {
	kept := w.engine.Settings().TraceSteps
	n := kept
	if q := r.URL.Query().Get("n"); q != "" {
		var err error
		if n, err = strconv.Atoi(q); err != nil || n < 1 || n > kept {
			http.Error(rw, fmt.Sprintf("n is %q, must be 1 to %d", q, kept), http.StatusBadRequest)
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), debugTimeout)
	defer cancel()
	traces, err := w.Traces(ctx, n)
	if err != nil {
		http.Error(rw, "the engine does not answer: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	rw.Header().Set("Content-Type", "application/jsonl")
	out := json.NewEncoder(rw)
	for _, t := range traces {
		if out.Encode(record(t)) != nil {
			return // the reader is gone
		}
	}
}
