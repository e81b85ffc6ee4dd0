/* cext._fetch.Getter: whole answers over HTTP for a client without an event loop, see os_fetch_get.h. */
#include "py_fetch_parts.h"

#include <string.h>

#include "os_fetch_get.h"

typedef struct one_getter {
    PyObject_HEAD os_get *get; /* owned; NULL: closed. Changed under the GIL alone */
    bool parked;               /* a fork is under way; guarded by the GIL */
    unsigned waits;            /* threads in wait(); guarded by the GIL */
    struct one_getter *next;   /* borrowed; guarded by the GIL */
} one_getter;

/* Those that are open, for forks. Guarded by the GIL. */
static one_getter *getters;

static const char *const ENDS[] = {"",          "done",   "connect", "silent", "refused",
                                   "untrusted", "no-tls", "proxy",   "broken", "headers"};

static os_get *opened(PyObject *object) {
    os_get *get = ((one_getter *)object)->get;
    if (get != NULL && !os_get_inherited(get))
        return get;
    os_failure failure;
    os_fail(&failure, OS_CLOSED, "getter: closed");
    os_py_raise(&failure);
    return NULL;
}

static int init(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"authorities", "connect", "silence", NULL};
    one_getter *self = (one_getter *)object;
    double connect = 10, silence = 60;
    os_get_options options = {.env = &os_env_system};
    os_failure failure = {0};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|$zdd:Getter", names, &options.authorities, &connect,
                                     &silence))
        return -1;
    if (!(connect > 0 && connect <= 1e6 && silence > 0 && silence <= 1e6)) {
        PyErr_SetString(PyExc_ValueError, "getter: want seconds");
        return -1;
    }
    if (self->get != NULL) {
        PyErr_SetString(PyExc_TypeError, "Getter: initialised before");
        return -1;
    }
    options.connect_ms = (uint32_t)(connect * 1000);
    options.silence_ms = (uint32_t)(silence * 1000);
    if (os_get_make(&options, &self->get, &failure) == OS_OK) {
        self->next = getters;
        getters = self;
        return 0;
    }
    os_py_raise(&failure);
    return -1;
}

static void shut(one_getter *self) {
    os_get *get = self->get;
    self->get = NULL;
    if (get == NULL)
        return;
    for (one_getter **place = &getters; *place != NULL; place = &(*place)->next)
        if (*place == self) {
            *place = self->next;
            break;
        }
    Py_BEGIN_ALLOW_THREADS;
    os_get_free(get);
    Py_END_ALLOW_THREADS;
}

static void finalize(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    shut((one_getter *)object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *py_close(PyObject *object, PyObject *unused) {
    (void)unused;
    const one_getter *self = (one_getter *)object;
    if (self->parked && self->get != NULL && !os_get_inherited(self->get))
        return PyErr_Format(PyExc_ValueError, "getter: parked for a fork");
    if (self->waits > 0)
        return PyErr_Format(PyExc_ValueError, "getter: got close() beside wait(), want it after");
    shut((one_getter *)object);
    Py_RETURN_NONE;
}

static PyObject *py_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    return Py_NewRef(object);
}

/* The lines of a tuple of str, borrowed from it; false with an exception. */
static bool take_lines(PyObject *lines, const char **line, unsigned *count) {
    os_failure failure;
    Py_ssize_t size = PyTuple_GET_SIZE(lines);
    if (size > (Py_ssize_t)OS_FETCH_HEADERS_MAX) {
        os_fail(&failure, OS_LIMIT, "request: got %zd headers, want at most %u", size, OS_FETCH_HEADERS_MAX);
        return os_py_raise(&failure) != NULL;
    }
    for (Py_ssize_t at = 0; at < size; at++) {
        Py_ssize_t length;
        line[at] = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(lines, at), &length);
        if (line[at] == NULL)
            return false;
        if ((size_t)length != strlen(line[at])) {
            PyErr_SetString(PyExc_ValueError, "request: got a header with a NUL in it");
            return false;
        }
    }
    *count = (unsigned)size;
    return true;
}

static PyObject *start(PyObject *object, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"", "headers", "body", "head", "authorities", "proxy", "no_proxy", NULL};
    os_get_request request = {0};
    const char *line[OS_FETCH_HEADERS_MAX], *body = NULL;
    Py_ssize_t body_size = 0;
    PyObject *sequence = NULL;
    int head = 0;
    uint32_t number = 0;
    os_failure failure = {0};
    os_get *get = opened(object);
    if (get == NULL ||
        !PyArg_ParseTupleAndKeywords(arguments, keywords, "s|$Oz#pzzz:start", names, &request.url, &sequence, &body,
                                     &body_size, &head, &request.authorities, &request.proxy, &request.no_proxy))
        return NULL;
    PyObject *lines = sequence == NULL ? PyTuple_New(0) : PySequence_Tuple(sequence);
    if (lines == NULL)
        return NULL;
    request.headers = line;
    request.body = body;
    request.body_size = (size_t)body_size;
    request.head = head != 0;
    if (take_lines(lines, line, &request.header_count) && os_get_start(get, &request, &number, &failure) != OS_OK)
        os_py_raise(&failure);
    Py_DECREF(lines);
    return number == 0 ? NULL : PyLong_FromUnsignedLong(number);
}

static PyObject *look(PyObject *object, PyObject *argument) {
    os_get_answer answer;
    os_failure failure;
    os_get *get = opened(object);
    uint32_t number = (uint32_t)PyLong_AsUnsignedLong(argument);
    if (get == NULL || PyErr_Occurred())
        return NULL;
    if (os_get_look(get, number, &answer, &failure) != OS_OK)
        return os_py_raise(&failure);
    PyObject *words = PyUnicode_DecodeLatin1(answer.words, (Py_ssize_t)strlen(answer.words), NULL);
    return Py_BuildValue("lsiy#N", answer.status, ENDS[answer.end], answer.error,
                         answer.head == NULL ? "" : answer.head, (Py_ssize_t)answer.head_size, words);
}

static PyObject *take(PyObject *object, PyObject *argument) {
    os_failure failure;
    size_t taken = 0;
    os_get *get = opened(object);
    uint32_t number = (uint32_t)PyLong_AsUnsignedLong(argument);
    if (get == NULL || PyErr_Occurred())
        return NULL;
    size_t held = os_get_held(get, number);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)held);
    if (bytes == NULL)
        return NULL;
    if (os_get_take(get, number, PyBytes_AS_STRING(bytes), held, &taken, &failure) != OS_OK) {
        Py_DECREF(bytes);
        return os_py_raise(&failure);
    }
    if (taken < held)
        _PyBytes_Resize(&bytes, (Py_ssize_t)taken);
    return bytes;
}

static PyObject *drop(PyObject *object, PyObject *argument) {
    uint32_t number = (uint32_t)PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    os_get *get = ((one_getter *)object)->get;
    if (get != NULL && !os_get_inherited(get))
        os_get_drop(get, number);
    Py_RETURN_NONE;
}

static PyObject *wait_for_news(PyObject *object, PyObject *argument) {
    os_get *get = opened(object);
    double seconds = PyFloat_AsDouble(argument);
    if (get == NULL || PyErr_Occurred())
        return NULL;
    if (!(seconds >= 0))
        return PyErr_Format(PyExc_ValueError, "wait: want seconds");
    /* A signal comes to whichever thread it likes; at most so late is it acted on. */
    uint64_t ns = seconds > 0.25 ? 250000000u : (uint64_t)(seconds * 1e9);
    ((one_getter *)object)->waits++;
    Py_BEGIN_ALLOW_THREADS;
    os_get_wait(get, ns);
    Py_END_ALLOW_THREADS;
    ((one_getter *)object)->waits--;
    if (PyErr_CheckSignals() < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *wake(PyObject *object, PyObject *unused) {
    os_get *get = opened(object);
    (void)unused;
    if (get == NULL)
        return NULL;
    os_get_wake(get);
    Py_RETURN_NONE;
}

/* Not written in Python, where a signal that comes during a fork is acted on before the first line of what follows it:
 * that would be left out, with the getter parked for ever. */
PyObject *os_py_fetch_park(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    for (one_getter *one = getters; one != NULL; one = one->next)
        if (!one->parked && !os_get_inherited(one->get)) {
            os_get_park(one->get);
            one->parked = true;
        }
    Py_RETURN_NONE;
}

PyObject *os_py_fetch_unpark(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    for (one_getter *one = getters; one != NULL; one = one->next)
        if (one->parked && !os_get_inherited(one->get)) {
            one->parked = false;
            os_get_unpark(one->get);
        }
    Py_RETURN_NONE;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"start", KEYWORDS(start),
     "start(url, *, headers=(), body=None, head=False, authorities=None, proxy=None, no_proxy=None) -> number: a GET, "
     "or a POST of the body. authorities: PEM."},
    {"look", look, METH_O,
     "look(number) -> (status, end, errno, header lines, words). status 0: its header is not complete. end: empty "
     "while "
     "it runs, done, or what it ended with."},
    {"take", take, METH_O, "take(number) -> the bytes of the body that came since."},
    {"drop", drop, METH_O, "drop(number): forgets it."},
    {"wait", wait_for_news, METH_O,
     "wait(seconds): until there is news, or a while has passed, a quarter of a second at most."},
    {"wake", wake, METH_NOARGS, "Ends a wait. Any thread."},
    {"close", py_close, METH_NOARGS, "Gives up what runs, and ends the thread. May be called again."},
    {"__enter__", py_enter, METH_NOARGS, NULL},
    {"__exit__", py_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Getter(*, authorities=None, connect=10, silence=60): whole answers over HTTP. authorities: a file. "
                "Times in seconds."},
    {Py_tp_init, init},
    {Py_tp_dealloc, finalize},
    {Py_tp_methods, methods},
    {0, NULL},
};

PyType_Spec os_py_getter_spec = {"cext._fetch.Getter", sizeof(one_getter), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
