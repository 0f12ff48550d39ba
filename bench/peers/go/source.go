package main

// The mock source of the Go peer: the same tokens, pacing and counters as _source.py.

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const words = `the of and to in is that it was for on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over`

const period = 1009

var twice = makeTokens()

func makeTokens() []string {
	list := strings.Fields(words)
	made := make([]string, 0, 2*period)
	state := uint64(1)
	for i := 0; i < period; i++ {
		state = (state*1103515245 + 12345) % 2147483648
		made = append(made, " "+list[int(state>>16)%len(list)])
	}
	return append(made, made...)
}

var pulled, opened, closed atomic.Int64

var events *os.File

func openEvents() {
	if path := os.Getenv("BENCH_EVENTS_FILE"); path != "" {
		events, _ = os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	}
}

// monotonicNs is CLOCK_MONOTONIC, as Python's time.monotonic_ns(); the time package does not give it out.
func monotonicNs() int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

type mock struct {
	Tokens    *int64   `json:"tokens"`
	Rate      *float64 `json:"tokens_per_second"`
	Batch     int      `json:"batch"`
	Suspend   bool     `json:"suspend"`
	FirstWait float64  `json:"first_token_seconds"`
}

type source struct {
	mock
	name  string
	sent  int64
	start time.Time
}

func open(prompt string, m mock) *source {
	number := opened.Add(1)
	name := fmt.Sprint(number)
	if at := strings.LastIndexByte(prompt, '#'); at >= 0 {
		name = strings.TrimSpace(prompt[at+1:])
	}
	if m.Batch < 1 {
		m.Batch = 1
	} else if m.Batch > period {
		m.Batch = period
	}
	if events != nil {
		fmt.Fprintf(events, "open %s %d\n", name, monotonicNs())
	}
	return &source{mock: m, name: name, start: time.Now().Add(time.Duration(m.FirstWait * float64(time.Second)))}
}

// next returns the tokens of one pull; none at the end, or when ctx is done.
func (s *source) next(ctx context.Context) []string {
	if s.Tokens != nil && s.sent >= *s.Tokens {
		return nil
	}
	due := s.start
	if s.Rate != nil {
		due = due.Add(time.Duration(float64(s.sent) / *s.Rate * float64(time.Second)))
	}
	if s.Rate != nil || s.sent == 0 {
		if ahead := time.Until(due); ahead > 0 {
			timer := time.NewTimer(ahead)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
		}
	}
	if s.Rate == nil && s.Suspend {
		runtime.Gosched()
	}
	ready := int64(s.Batch)
	if s.Tokens != nil && *s.Tokens-s.sent < ready {
		ready = *s.Tokens - s.sent
	}
	at := s.sent % period
	s.sent += ready
	pulled.Add(ready)
	return twice[at : at+ready]
}

func (s *source) close() {
	closed.Add(1)
	if events != nil {
		fmt.Fprintf(events, "close %s %d %d\n", s.name, monotonicNs(), s.sent)
	}
}
