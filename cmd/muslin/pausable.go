package main

import "context"

// task is something that goes on until ctx ends, which gives nil, or until it fails.
type task func(ctx context.Context) error

// pausable is a task that can be stopped for a while. Make it with newPausable.
type pausable struct {
	task  task
	hold  chan chan struct{} // what is received from Hold is closed when the task has stopped
	again chan struct{}
	ended chan struct{} // closed with Run
}

func newPausable(t task) *pausable {
	return &pausable{task: t, hold: make(chan chan struct{}), again: make(chan struct{}), ended: make(chan struct{})}
}

// Run is the task, with its pauses. It is called once.
func (p *pausable) Run(ctx context.Context) error {
	defer close(p.ended)
	for {
		inner, stop := context.WithCancel(ctx)
		result := make(chan error, 1)
		go func() { result <- p.task(inner) }()
		select {
		case err := <-result:
			stop()
			return err
		case stopped := <-p.hold:
			stop()
			err := <-result
			close(stopped)
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.again:
		}
	}
}

// Hold returns when the task has stopped, or Run has ended. It waits for Run to begin.
func (p *pausable) Hold() {
	stopped := make(chan struct{})
	select {
	case p.hold <- stopped:
		<-stopped
	case <-p.ended:
	}
}

// Release lets a task go on that is on hold.
func (p *pausable) Release() {
	select {
	case p.again <- struct{}{}:
	case <-p.ended:
	}
}
