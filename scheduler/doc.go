// Package scheduler is the control plane: it admits requests through a replicated log, keeps the
// queue, and hands requests to workers when these can start them.
package scheduler
