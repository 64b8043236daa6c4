package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Handler serves the HTTP API: OpenAI's chat and plain completions, the models, health, version and
// metrics.
func (g *Gateway) Handler() http.Handler {
	mux := http.NewServeMux()
	route := func(pattern, method string, h http.HandlerFunc) {
		name := strings.TrimSuffix(pattern, "{id...}")
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			counted := &statusWriter{ResponseWriter: w, code: http.StatusOK}
			rec := &record{began: g.Now()}
			r = r.WithContext(withRecord(r.Context(), rec))
			defer func() {
				if rec.failure != nil && rec.failure.status == statusGone {
					counted.code = statusGone // whatever it was sent before
				}
				g.metrics.http.WithLabelValues(name, strconv.Itoa(counted.code)).Inc()
				if method == http.MethodPost {
					g.logRequest(r.Context(), rec, r.Method, name, slog.Int("status", counted.code))
				}
			}()
			if r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
				w.Header().Set("Allow", method)
				g.refuse(counted, r, &apiError{status: http.StatusMethodNotAllowed, kind: typeInvalid, name: "method_not_allowed",
					message: name + " takes " + method + ", not " + clip(r.Method, 16)})
				return
			}
			h(counted, r)
		})
	}
	route("/v1/chat/completions", http.MethodPost, g.serve(g.chatCall))
	route("/v1/completions", http.MethodPost, g.serve(g.completionCall))
	route("/v1/models", http.MethodGet, g.serveModels)
	route("/v1/models/{id...}", http.MethodGet, g.serveModel)
	route("/livez", http.MethodGet, g.serveLive)
	route("/readyz", http.MethodGet, g.serveReady)
	route("/health", http.MethodGet, g.serveReady)
	route("/version", http.MethodGet, g.serveVersion)
	route("/metrics", http.MethodGet, g.metrics.handler().ServeHTTP)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		g.metrics.http.WithLabelValues("other", "404").Inc()
		(&apiError{status: http.StatusNotFound, kind: typeInvalid, name: "unknown_url",
			message: "there is nothing at " + clip(r.URL.Path, 128)}).write(w)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		echoLabel(w, r, newID())
		// A client that is given a base address with a slash at its end asks for what it means.
		if len(r.URL.Path) > 1 {
			r.URL.Path = strings.TrimSuffix(r.URL.Path, "/")
		}
		mux.ServeHTTP(w, r)
	})
}

// Server returns an HTTP server for Handler with the gateway's limits on headers and idle connections.
// It has no limit on writing as a whole, since a stream may be long; each write has its own.
func (g *Gateway) Server() *http.Server {
	return &http.Server{
		Handler:           g.Handler(),
		ReadHeaderTimeout: g.ReadTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
}

// statusWriter remembers the status for the metrics.
type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	// Who must come again is told when, whichever handler says so.
	if h := w.Header(); (code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable) && h.Get("Retry-After") == "" {
		h.Set("Retry-After", "1")
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// parser makes a call of a body.
type parser func(ctx context.Context, f *fields, who caller) (*call, opener, *apiError)

// serve answers the calls of one route.
func (g *Gateway) serve(parse parser) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, open, e := g.take(w, r, parse)
		if e != nil {
			g.refuse(w, r, e)
			return
		}
		defer g.yield(c)
		g.respond(w, r, c, open)
	}
}

// take reads a call, which then has a place.
func (g *Gateway) take(w http.ResponseWriter, r *http.Request, parse parser) (c *call, open opener, e *apiError) {
	who, e := identify(w, r)
	if e != nil {
		return nil, nil, e
	}
	recordOf(r.Context()).identify(who)
	raw, e := g.body(w, r)
	if e != nil {
		return nil, nil, e
	}
	defer g.bodies.held.Add(-int64(cap(raw)))
	if e := g.place(who); e != nil {
		return nil, nil, e
	}
	f, e := parseBody(raw)
	if e == nil {
		c, open, e = parse(r.Context(), f, who)
	}
	if e != nil {
		g.release(1)
		return nil, nil, e
	}
	c.places = 1
	return c, open, nil
}

// refuse answers with an error, and notes it.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, e *apiError) {
	recordOf(r.Context()).fail(e)
	g.metrics.refused(e)
	e.write(w)
}

func writeJSON(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	// A failed write means that the client has gone: there is nobody left to tell.
	_, _ = w.Write(body)
}

func (g *Gateway) appendModel(b []byte, m *served) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, m.ID)
	b = append(b, `,"object":"model","created":`...)
	b = appendInt(b, int(g.started.Unix()))
	b = append(b, `,"owned_by":"quire","max_model_len":`...)
	b = appendInt(b, m.ContextLength)
	b = append(b, `,"ready":`...)
	b = strconv.AppendBool(b, g.refused(m) == "")
	return append(b, '}')
}

func (g *Gateway) serveModels(w http.ResponseWriter, _ *http.Request) {
	b := []byte(`{"object":"list","data":[`)
	for i, m := range g.order {
		if i > 0 {
			b = append(b, ',')
		}
		b = g.appendModel(b, m)
	}
	writeJSON(w, append(b, "]}\n"...))
}

func (g *Gateway) serveModel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	m := g.models[id]
	if m == nil {
		unknownModel(id).write(w)
		return
	}
	writeJSON(w, append(g.appendModel(nil, m), '\n'))
}

// serveReady says whether requests could be served. What it depends on is beyond this process, so that a
// restart does not help.
func (g *Gateway) serveReady(w http.ResponseWriter, _ *http.Request) {
	switch why := g.notReady(); {
	case g.answers.isDraining():
		shuttingDown().write(w)
	case why != "":
		unavailable("%s", why).write(w)
	default:
		writeJSON(w, []byte("{\"status\":\"ok\"}\n"))
	}
}

// serveLive says that the process works: it answers as long as it should not be restarted, while it waits for
// a leader or for workers too, and while it drains.
func (g *Gateway) serveLive(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, []byte("{\"status\":\"ok\"}\n"))
}

func (g *Gateway) serveVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, append(appendString([]byte(`{"version":`), g.Version), "}\n"...))
}
