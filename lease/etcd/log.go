package etcd

import (
	"context"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapCore passes etcd's own log on to slog.
type zapCore struct {
	zapcore.LevelEnabler
	log   *slog.Logger
	level func(zapcore.Entry) slog.Level
}

// clientLog is for the client: everything it says is detail, since every failure also comes back as an
// error.
func clientLog(log *slog.Logger) *zap.Logger {
	return zap.New(&zapCore{zapcore.WarnLevel, log, func(zapcore.Entry) slog.Level { return slog.LevelDebug }})
}

// serverLog is for the embedded server; once it is closing, what it says of its listeners' end is detail.
// etcd calls Fatal or Panic where it cannot go on, as on a full
// disk. That must not take the data path down with it: the goroutine ends, and fatal is called with the
// message.
func serverLog(log *slog.Logger, closing func() bool, fatal func(message string)) *zap.Logger {
	level := func(e zapcore.Entry) slog.Level {
		switch {
		case closing(), chatter[e.Message]:
			return slog.LevelDebug
		case e.Level >= zapcore.ErrorLevel:
			return slog.LevelError
		}
		return slog.LevelWarn
	}
	hook := fatalHook(fatal)
	return zap.New(&zapCore{zapcore.WarnLevel, log, level}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

// chatter is what etcd warns of at each start of a server that is set up as ours on purpose: one port, and
// no users for whom it would sign anything.
var chatter = map[string]bool{
	"simple token is not cryptographically signed":                                         true,
	"Running http and grpc server on single port. This is not recommended for production.": true,
}

type fatalHook func(message string)

// OnWrite does not return: the code behind a Fatal or Panic counts on that.
func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	message := e.Message
	if cause, ok := enc.Fields["error"].(string); ok {
		message += ": " + cause
	}
	h(message)
	runtime.Goexit()
}

func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.LevelEnabler, slog.New(c.log.Handler().WithAttrs(attrs(fields))), c.level}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.LogAttrs(context.Background(), c.level(e), "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (c *zapCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for key, value := range enc.Fields {
			out = append(out, slog.Any(key, value))
		}
	}
	return out
}
