/* The Python module quant.kernels._lanes: which sets of kernels run here, and encoding by one of them. */
#define Py_LIMITED_API 0x030a0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "blocks.h"

static const kernel_set *const kernel_sets[] = {
#if defined(__x86_64__)
    &tinyq_avx512, &tinyq_avx2, &tinyq_sse2,
#elif defined(__aarch64__)
    &tinyq_neon,
#endif
    NULL};

static PyObject *names(PyObject *self, PyObject *nothing)
{
    (void)self;
    (void)nothing;
    PyObject *list = PyList_New(0);
    for (const kernel_set *const *set = kernel_sets; list && *set; set++) {
        if (!(*set)->runs())
            continue;
        PyObject *name = PyUnicode_FromString((*set)->name);
        if (!name || PyList_Append(list, name) < 0) {
            Py_XDECREF(name);
            Py_DECREF(list);
            return NULL;
        }
        Py_DECREF(name);
    }
    return list;
}

static PyObject *encode(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    unsigned long long src, imatrix, dst, ggml;
    long long nrows, n_per_row;
    encode_job job;
    int done = -1;
    if (!PyArg_ParseTuple(args, "siiKLLKKK", &name, &job.type, &job.source, &src, &nrows, &n_per_row, &imatrix, &dst, &ggml))
        return NULL;
    job.src = (const void *)(uintptr_t)src;
    job.nrows = nrows;
    job.n_per_row = n_per_row;
    job.imatrix = (const float *)(uintptr_t)imatrix;
    job.dst = (uint8_t *)(uintptr_t)dst;
    job.ggml = (chunk_fn *)(uintptr_t)ggml;
    for (const kernel_set *const *set = kernel_sets; *set; set++)
        if (!strcmp((*set)->name, name) && (*set)->runs()) {
            Py_BEGIN_ALLOW_THREADS
            done = (*set)->encode(&job);
            Py_END_ALLOW_THREADS
        }
    if (done)
        return PyErr_Format(PyExc_ValueError, "no kernels named %s for type %d and rows of %lld", name, job.type, n_per_row);
    return Py_BuildValue("IL", (unsigned)job.peak, (long long)job.left);
}

static PyMethodDef methods[] = {
    {"names", names, METH_NOARGS, NULL},
    {"encode", encode, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_lanes", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lanes(void) { return PyModule_Create(&definition); }
