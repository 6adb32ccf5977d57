// Package ratelimit limits how often something may happen, with a token bucket.
package ratelimit

import (
	"errors"
	"sync"
	"time"
)

// Bucket holds up to capacity tokens and gains rate tokens per second.
// Each request takes one token. A full bucket permits a short burst; over a long
// time the number of requests cannot exceed the rate.
type Bucket struct {
	mu       sync.Mutex
	capacity float64
	rate     float64
	tokens   float64
	last     time.Time
	now      func() time.Time // replaced in tests
}

// New returns a full bucket.
func New(capacity int, rate float64) (*Bucket, error) {
	if capacity < 1 || rate <= 0 {
		return nil, errors.New("ratelimit: capacity and rate must be positive")
	}
	return &Bucket{
		capacity: float64(capacity),
		rate:     rate,
		tokens:   float64(capacity),
		last:     time.Now(),
		now:      time.Now,
	}, nil
}

// refill adds the tokens earned since the last call. The caller holds the lock.
func (b *Bucket) refill() {
	now := b.now()
	elapsed := now.Sub(b.last).Seconds()
	if elapsed <= 0 {
		return // the clock stood still or went backwards
	}
	b.tokens = min(b.capacity, b.tokens+elapsed*b.rate)
	b.last = now
}

// Allow takes one token and reports whether there was one to take.
func (b *Bucket) Allow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// RetryAfter tells how long to wait until the next token is there,
// for example to fill in the Retry-After header of an HTTP 429 answer.
func (b *Bucket) RetryAfter() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill()
	if b.tokens >= 1 {
		return 0
	}
	return time.Duration((1 - b.tokens) / b.rate * float64(time.Second))
}
