// A call of a compiled model that does without Dynamo: it checks that everything the model was compiled for
// still is as it was, and calls the function in which Dynamo's call ended.
//
// Python sees two types. An Entry holds one situation and the way to its function; a Call tries its entries
// in turn and calls its fallback when none holds. A dictionary is known to be unchanged by CPython's version
// tag, which every change of any dictionary takes from one counter; 3.13 begins to do without it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <ATen/EmptyTensor.h>
#include <ATen/core/TensorBase.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cstring>
#include <vector>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030D0000
#error "dictionary version tags are known for Python 3.11 and 3.12"
#endif

PyObject* THPVariable_Wrap(const at::TensorBase&);  // its header takes 8 s to compile

namespace {

// ---- references

class Ref {  // a strong reference, dropped with this object
 public:
  explicit Ref(PyObject* owned = nullptr) : object_(owned) {}
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_;
};

uint64_t version_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }

// ---- tensors

// Where in a Python tensor its at::Tensor lies, told by read_tensors_at: the header that declares it takes 8 s
// to compile.
Py_ssize_t tensor_offset = -1;
PyTypeObject* tensor_type = nullptr;

const at::TensorBase& tensor_in(PyObject* object) {
  return *reinterpret_cast<const at::TensorBase*>(reinterpret_cast<const char*>(object) + tensor_offset);
}

struct Metadata {  // what Dynamo's guard of a tensor compares
  PyTypeObject* type;
  uint64_t keys;
  caffe2::TypeMeta dtype;
  c10::Device device;
  bool requires_grad;
  std::vector<int64_t> sizes, strides;

  explicit Metadata(PyObject* object)
      : type(Py_TYPE(object)),
        keys(tensor_in(object).key_set().raw_repr()),
        dtype(tensor_in(object).dtype()),
        device(tensor_in(object).device()),
        requires_grad(tensor_in(object).requires_grad()),
        sizes(tensor_in(object).sizes().vec()),
        strides(tensor_in(object).strides().vec()) {}

  bool is_of(PyObject* object) const {
    if (Py_TYPE(object) != type) return false;
    const at::TensorBase& tensor = tensor_in(object);
    return tensor.key_set().raw_repr() == keys && tensor.dtype() == dtype && tensor.device() == device &&
           tensor.requires_grad() == requires_grad && tensor.sizes() == at::IntArrayRef(sizes) &&
           tensor.strides() == at::IntArrayRef(strides);
  }
};

// ---- structures of arguments and results

enum Kind : long { TENSOR, CONSTANT, TUPLE, LIST, DICT };

// A node of a structure. Python describes it as (TENSOR, slot), (CONSTANT, value), (TUPLE, parts),
// (LIST, parts) or (DICT, parts, keys), with tuples of parts and of keys.
struct Node {
  Kind kind;
  Py_ssize_t slot = 0;
  PyObject* value = nullptr;  // CONSTANT: the value, DICT: the keys; the description owns it
  std::vector<Node> parts;

  explicit Node(PyObject* description) {
    kind = static_cast<Kind>(PyLong_AsLong(PyTuple_GET_ITEM(description, 0)));
    PyObject* content = PyTuple_GET_ITEM(description, 1);
    if (kind == TENSOR) {
      slot = PyLong_AsSsize_t(content);
    } else if (kind == CONSTANT) {
      value = content;
    } else {
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(content); ++i) parts.emplace_back(PyTuple_GET_ITEM(content, i));
      if (kind == DICT) value = PyTuple_GET_ITEM(description, 2);
    }
  }
};

// Same type and value: True is not 1, and 0.0 is not -0.0. Only ints, floats, strings and singletons come here.
bool is_same_constant(PyObject* expected, PyObject* given) {
  if (expected == given) return true;
  if (Py_TYPE(expected) != Py_TYPE(given)) return false;
  if (PyFloat_CheckExact(expected)) {
    double a = PyFloat_AS_DOUBLE(expected), b = PyFloat_AS_DOUBLE(given);
    return std::memcmp(&a, &b, sizeof a) == 0;
  }
  if (!PyLong_CheckExact(expected) && !PyUnicode_CheckExact(expected)) return false;
  return PyObject_RichCompareBool(expected, given, Py_EQ) == 1;
}

using Tensors = std::vector<PyObject*>;

// Whether `given` has this structure; its tensors go to their slots in `found`.
bool matches(const Node& node, PyObject* given, const std::vector<Metadata>& wanted, Tensors& found) {
  const Py_ssize_t count = static_cast<Py_ssize_t>(node.parts.size());
  switch (node.kind) {
    case TENSOR:
      found[node.slot] = given;
      return wanted[node.slot].is_of(given);
    case CONSTANT:
      return is_same_constant(node.value, given);
    case TUPLE:
    case LIST: {
      if (Py_TYPE(given) != (node.kind == TUPLE ? &PyTuple_Type : &PyList_Type)) return false;
      if (Py_SIZE(given) != count) return false;
      PyObject** items = PySequence_Fast_ITEMS(given);
      for (Py_ssize_t i = 0; i < count; ++i)
        if (!matches(node.parts[i], items[i], wanted, found)) return false;
      return true;
    }
    case DICT: {
      if (given == nullptr) return count == 0;  // no keyword arguments
      if (!PyDict_CheckExact(given) || PyDict_GET_SIZE(given) != count) return false;
      Py_ssize_t position = 0, i = 0;
      PyObject *key, *value;
      for (; PyDict_Next(given, &position, &key, &value); ++i) {
        if (!is_same_constant(PyTuple_GET_ITEM(node.value, i), key)) return false;
        if (!matches(node.parts[i], value, wanted, found)) return false;
      }
      return true;
    }
  }
  return false;
}

// A new object of this structure around `tensors` (a list or tuple); null with an exception set.
PyObject* built(const Node& node, PyObject* tensors) {
  const Py_ssize_t count = static_cast<Py_ssize_t>(node.parts.size());
  switch (node.kind) {
    case TENSOR:
      if (node.slot >= PySequence_Fast_GET_SIZE(tensors)) {
        PyErr_SetString(PyExc_RuntimeError, "a compiled graph returned fewer values than before");
        return nullptr;
      }
      return Py_NewRef(PySequence_Fast_GET_ITEM(tensors, node.slot));
    case CONSTANT:
      return Py_NewRef(node.value);
    case TUPLE:
    case LIST: {
      Ref whole(node.kind == TUPLE ? PyTuple_New(count) : PyList_New(count));
      if (!whole.get()) return nullptr;
      for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* part = built(node.parts[i], tensors);
        if (!part) return nullptr;
        if (node.kind == TUPLE) PyTuple_SET_ITEM(whole.get(), i, part);
        else PyList_SET_ITEM(whole.get(), i, part);
      }
      return whole.release();
    }
    case DICT: {
      Ref whole(PyDict_New());
      if (!whole.get()) return nullptr;
      for (Py_ssize_t i = 0; i < count; ++i) {
        Ref part(built(node.parts[i], tensors));
        if (!part.get() || PyDict_SetItem(whole.get(), PyTuple_GET_ITEM(node.value, i), part.get()) < 0)
          return nullptr;
      }
      return whole.release();
    }
  }
  PyErr_SetString(PyExc_SystemError, "unknown kind of structure");
  return nullptr;
}

// ---- one situation

struct Modes {  // thread-local state that decides what an operator does, as far as it is no guard of Dynamo's
  uint64_t included, excluded;
  bool grad, inference;

  static Modes now() {
    auto local = c10::impl::tls_local_dispatch_key_set();
    return {local.included_.raw_repr(), local.excluded_.raw_repr(), c10::GradMode::is_enabled(),
            c10::InferenceMode::is_enabled()};
  }
  bool operator==(const Modes& other) const {
    return included == other.included && excluded == other.excluded && grad == other.grad &&
           inference == other.inference;
  }
};

struct PinnedModule {
  PyObject* module;
  PyTypeObject* type;
  PyObject* dict;
};

struct PinnedDict {
  PyObject* dict;
  uint64_t version;
};

struct Namespace {  // a dictionary, or a Python module, whose type must stay too, with its own
  PyObject* object;
  PyTypeObject* type;
  PyObject* dict;
  uint64_t version = 0;  // when all guards last held; no dictionary has this one
};

struct Place {  // a dictionary with a key, or a cell of a closure without
  PyObject* container;
  PyObject* key;
  PyObject* value;

  bool still_holds() const {
    return (key == Py_None ? PyCell_GET(container) : PyDict_GetItem(container, key)) == value;
  }
};

const void* memory_of(PyObject* object) {
  const at::TensorBase& tensor = tensor_in(object);
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

// All that a TensorImpl holds itself: pointers to storage, autograd's metadata and version counter, sizes, strides,
// dtype, keys. While these words are the same, so is what Metadata compares, requires_grad excepted, and the memory.
// They may differ without meaning.
struct Words {
  static constexpr size_t FIRST = sizeof(c10::intrusive_ptr_target) / 8, LAST = sizeof(c10::TensorImpl) / 8;
  uint64_t words[LAST - FIRST];
  bool are_all;  // sizes of many dimensions are elsewhere

  static const uint64_t* of(PyObject* object) {
    return reinterpret_cast<const uint64_t*>(tensor_in(object).unsafeGetTensorImpl()) + FIRST;
  }
  explicit Words(PyObject* object) : are_all(tensor_in(object).dim() <= C10_SIZES_AND_STRIDES_MAX_INLINE_SIZE) {
    std::memcpy(words, of(object), sizeof words);
  }
  bool are_of(PyObject* object) const {
    const uint64_t* now = of(object);
    uint64_t difference = !are_all;
    for (size_t i = 0; i < LAST - FIRST; ++i) difference |= now[i] ^ words[i];
    return difference == 0;
  }
};

struct PinnedTensor {  // what every call looks at; the rest is in a vector of its own, out of the way
  PyObject* tensor;
  PyTypeObject* type;
  bool requires_grad;
  Words words;

  explicit PinnedTensor(PyObject* tensor)
      : tensor(tensor), type(Py_TYPE(tensor)), requires_grad(tensor_in(tensor).requires_grad()), words(tensor) {}

  bool is_as_it_was() const {
    return Py_TYPE(tensor) == type && words.are_of(tensor) && tensor_in(tensor).requires_grad() == requires_grad;
  }
};

struct PinnedMetadata {
  Metadata metadata;
  const void* memory;
};

struct Situation {
  Modes modes = Modes::now();
  Node arguments, result;
  std::vector<Metadata> wanted;  // of the tensors among the arguments
  std::vector<PinnedModule> modules;
  std::vector<PinnedDict> dicts;
  std::vector<Place> places;
  std::vector<Namespace> namespaces;
  std::vector<PinnedTensor> tensors;
  std::vector<PinnedMetadata> metadata;  // of the same
  std::vector<PyObject*> inputs;  // of the function: a pinned tensor, or null for one of the call, in `slots`
  std::vector<Py_ssize_t> slots;
  std::vector<size_t> given, all;  // which inputs are of the call, and every one
  std::vector<size_t> written;     // which inputs the function writes
  bool moves_versions = true;      // whether that is to be seen by their counters before it does

  Situation(PyObject* arguments, PyObject* result) : arguments(arguments), result(result) {}

  bool has_model() const {
    for (const auto& pin : modules) {
      if (Py_TYPE(pin.module) != pin.type) return false;
      PyObject** dict = _PyObject_GetDictPtr(pin.module);
      if (dict == nullptr || *dict != pin.dict) return false;
    }
    for (const auto& pin : dicts)
      if (version_of(pin.dict) != pin.version) return false;
    for (const auto& place : places)
      if (!place.still_holds()) return false;
    return true;
  }

  bool has_weights() const {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].is_as_it_was()) continue;
      if (!metadata[i].metadata.is_of(tensors[i].tensor)) return false;
      if (!written.empty() && memory_of(tensors[i].tensor) != metadata[i].memory) return false;
    }
    return true;
  }

  // Whether names lead where they led when all guards last held.
  bool has_names() const {
    for (const auto& space : namespaces)
      if (version_of(space.dict) != space.version || Py_TYPE(space.object) != space.type) return false;
    return !namespaces.empty();
  }

  std::vector<uint64_t> versions_of_names() const {
    std::vector<uint64_t> versions;
    for (const auto& space : namespaces) versions.push_back(version_of(space.dict));
    return versions;
  }

  void remember_names(const std::vector<uint64_t>& versions) {
    for (size_t i = 0; i < namespaces.size(); ++i) namespaces[i].version = versions[i];
  }

  // To the function two names of one tensor are two tensors, but the model may have asked `a is b`.
  bool are_different(const Tensors& given) const {
    bool is_known = false;
    for (size_t i = 0; i < given.size(); ++i) {
      for (size_t j = 0; j < i; ++j) is_known |= given[i] == given[j];
      for (const auto& pin : tensors) is_known |= given[i] == pin.tensor;
    }
    return !is_known;
  }

  PyObject* input(size_t i, const Tensors& found) const { return inputs[i] ? inputs[i] : found[slots[i]]; }

  // Whether what is written lies in memory that no other input is in: the function was made for that. Pinned
  // tensors did not share what is written when they were pinned, and are where they were.
  bool is_written_apart(const Tensors& found) const {
    for (size_t w : written)
      for (size_t i : inputs[w] ? given : all)
        if (i != w && memory_of(input(i, found)) == memory_of(input(w, found))) return false;
    return true;
  }

  PyObject* input_list(const Tensors& found) const {
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(inputs.size()));
    if (!list) return nullptr;
    for (size_t i = 0; i < inputs.size(); ++i) PyList_SET_ITEM(list, i, Py_NewRef(input(i, found)));
    return list;
  }

  // As eager's operators do: what was saved for a backward, or kept until it changes, is seen to be stale.
  void bump_versions(PyObject* list) const {
    if (!moves_versions) return;
    for (size_t w : written) tensor_in(PyList_GET_ITEM(list, w)).unsafeGetTensorImpl()->bump_version();
  }
};

struct Entry {
  PyObject_HEAD
  PyObject* held;  // arguments of Entry(), which own all that the situation points to
  Situation* situation;
};

// Without inputs (None) the function is the model itself: it takes the call's arguments, and needs no guard.
enum Held { ARGUMENTS, WANTED, MODULES, DICTS, PLACES, FUNCTION, RESULT, TENSORS, INPUTS, WRITTEN, MOVES, GUARD, REST, NAMESPACES, SCOPE, HELD };

PyObject* held_by(Entry* entry, Held which) { return PyTuple_GET_ITEM(entry->held, which); }

enum Verdict { HOLDS, OTHER, STALE, FAILED };

// Whether Dynamo's guards hold: all of them, or those that names say nothing of while these are what they were.
Verdict ask_guard(Entry* entry) {
  Situation& situation = *entry->situation;
  const bool has_names = situation.has_names();
  // Taken before any guard looks: a name that changes meanwhile is then seen by the next call.
  const auto versions = has_names ? std::vector<uint64_t>() : situation.versions_of_names();
  Ref verdict(PyObject_CallOneArg(held_by(entry, has_names ? REST : GUARD), held_by(entry, SCOPE)));
  if (!verdict.get()) {  // a guard that cannot look any more, say at a deleted global: Dynamo will say
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return FAILED;
    PyErr_Clear();
    return OTHER;
  }
  if (verdict.get() != Py_True) return OTHER;
  if (!has_names) situation.remember_names(versions);
  return HOLDS;
}

// Whether the situation is what it was. STALE: it never will be again. HOLDS: `inputs` is the function's list,
// or stays null.
Verdict check(Entry* entry, PyObject* args, PyObject* kwargs, PyObject** inputs) {
  const Situation& situation = *entry->situation;
  if (!(situation.modes == Modes::now())) return OTHER;
  Tensors given(situation.wanted.size());
  if (!matches(situation.arguments.parts[0], args, situation.wanted, given)) return OTHER;
  if (!matches(situation.arguments.parts[1], kwargs, situation.wanted, given)) return OTHER;
  if (!situation.has_model()) return STALE;
  if (held_by(entry, INPUTS) == Py_None) return HOLDS;
  if (!situation.has_weights() || !situation.are_different(given)) return OTHER;
  if (!situation.is_written_apart(given)) return OTHER;
  Ref list(situation.input_list(given));  // owns the inputs before any Python code may run
  if (!list.get()) return FAILED;
  const Verdict verdict = ask_guard(entry);
  if (verdict == HOLDS) *inputs = list.release();
  return verdict;
}

// As check; what torch throws at a tensor unlike any that it was made for means another situation.
Verdict check_safely(Entry* entry, PyObject* args, PyObject* kwargs, PyObject** inputs) {
  try {
    return check(entry, args, kwargs, inputs);
  } catch (const std::exception&) {
    return OTHER;
  }
}

PyObject* run(Entry* entry, PyObject* inputs) {
  try {
    entry->situation->bump_versions(inputs);
  } catch (const std::exception& error) {  // a tensor of inference mode outside of it
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Ref outputs(PyObject_CallOneArg(held_by(entry, FUNCTION), inputs));
  if (!outputs.get()) return nullptr;
  Ref sequence(PySequence_Fast(outputs.get(), "a compiled graph returned no sequence"));
  return sequence.get() ? built(entry->situation->result, sequence.get()) : nullptr;
}

void fill(Situation& situation, PyObject* held) {
  auto list = [held](Held which) { return PyTuple_GET_ITEM(held, which); };
  auto each = [list](Held which, auto&& add) {
    if (list(which) == Py_None) return;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(list(which)); ++i) add(PyTuple_GET_ITEM(list(which), i));
  };
  each(WANTED, [&](PyObject* tensor) { situation.wanted.emplace_back(tensor); });
  each(MODULES, [&](PyObject* module) {
    PyObject** dict = _PyObject_GetDictPtr(module);
    situation.modules.push_back({module, Py_TYPE(module), dict ? *dict : nullptr});
  });
  each(PLACES, [&](PyObject* place) {
    PyObject** parts = PySequence_Fast_ITEMS(place);
    situation.places.push_back({parts[0], parts[1], parts[2]});
  });
  each(NAMESPACES, [&](PyObject* space) {
    PyObject* dict = PyModule_Check(space) ? PyModule_GetDict(space) : space;
    situation.namespaces.push_back({space, Py_TYPE(space), dict});
  });
  each(DICTS, [&](PyObject* dict) { situation.dicts.push_back({dict, version_of(dict)}); });
  each(TENSORS, [&](PyObject* tensor) {
    situation.tensors.emplace_back(tensor);
    situation.metadata.push_back({Metadata(tensor), memory_of(tensor)});
  });
  each(INPUTS, [&](PyObject* input) {
    const bool is_slot = PyLong_CheckExact(input);
    if (is_slot) situation.given.push_back(situation.inputs.size());
    situation.all.push_back(situation.inputs.size());
    situation.inputs.push_back(is_slot ? nullptr : input);
    situation.slots.push_back(is_slot ? PyLong_AsSsize_t(input) : 0);
  });
  situation.moves_versions = list(MOVES) == Py_True;
  each(WRITTEN, [&](PyObject* position) { situation.written.push_back(PyLong_AsSize_t(position)); });
}

// What an entry keeps alive: all but the tensors that a call was given.
PyObject* args_without_tensors(PyObject* args) {
  PyObject* held = PyTuple_New(HELD);
  for (Py_ssize_t i = 0; held && i < HELD; ++i)
    PyTuple_SET_ITEM(held, i, Py_NewRef(i == WANTED ? Py_None : PyTuple_GET_ITEM(args, i)));
  return held;
}

PyObject* Entry_new(PyTypeObject* type, PyObject* args, PyObject*) {
  if (PyTuple_GET_SIZE(args) != HELD || tensor_offset < 0) {
    PyErr_SetString(PyExc_TypeError, "Entry takes fifteen arguments, after read_tensors_at");
    return nullptr;
  }
  for (int which : {ARGUMENTS, WANTED, MODULES, DICTS, PLACES, RESULT, TENSORS, INPUTS, WRITTEN, NAMESPACES}) {
    PyObject* given = PyTuple_GET_ITEM(args, which);
    if (!PyTuple_CheckExact(given) && !(which == INPUTS && given == Py_None)) {
      PyErr_SetString(PyExc_TypeError, "all but function, moves_versions, guard, rest and scope are tuples");
      return nullptr;
    }
  }
  Entry* entry = reinterpret_cast<Entry*>(type->tp_alloc(type, 0));
  if (!entry) return nullptr;
  entry->held = args_without_tensors(args);
  if (!entry->held) {
    Py_DECREF(entry);
    return nullptr;
  }
  try {
    entry->situation = new Situation(PyTuple_GET_ITEM(args, ARGUMENTS), PyTuple_GET_ITEM(args, RESULT));
    fill(*entry->situation, args);
  } catch (const std::exception& error) {  // a tensor without plain sizes
    PyErr_SetString(PyExc_ValueError, error.what());
    Py_DECREF(entry);
    return nullptr;
  }
  return reinterpret_cast<PyObject*>(entry);
}

int Entry_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(reinterpret_cast<Entry*>(self)->held);
  return 0;
}

// No tp_clear: an entry in a cycle is reached by way of a Call, which has one.
void Entry_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  Entry* entry = reinterpret_cast<Entry*>(self);
  delete entry->situation;
  Py_CLEAR(entry->held);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot entry_slots[] = {
    {Py_tp_doc, const_cast<char*>("One situation of a model and the function that serves it.")},
    {Py_tp_new, reinterpret_cast<void*>(Entry_new)},
    {Py_tp_traverse, reinterpret_cast<void*>(Entry_traverse)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Entry_dealloc)},
    {0, nullptr}};
PyType_Spec entry_spec = {"wolong_direct_call.Entry", sizeof(Entry), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, entry_slots};
PyTypeObject* entry_type = nullptr;

// ---- a model's call

struct Call {
  PyObject_HEAD
  PyObject* fallback;
  PyObject* entries;  // a list, tried from its front
};

PyObject* Call_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* fallback;
  if (!PyArg_ParseTuple(args, "O:Call", &fallback)) return nullptr;
  Call* call = reinterpret_cast<Call*>(type->tp_alloc(type, 0));
  if (!call) return nullptr;
  call->fallback = Py_NewRef(fallback);
  call->entries = PyList_New(0);
  if (!call->entries) {
    Py_DECREF(call);
    return nullptr;
  }
  return reinterpret_cast<PyObject*>(call);
}

// The list may change in every line that runs Python code.
PyObject* Call_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  Call* call = reinterpret_cast<Call*>(self);
  Ref entries(Py_NewRef(call->entries));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(entries.get()); ++i) {
    Ref entry(Py_NewRef(PyList_GET_ITEM(entries.get(), i)));
    PyObject* inputs = nullptr;
    switch (check_safely(reinterpret_cast<Entry*>(entry.get()), args, kwargs, &inputs)) {
      case HOLDS: {
        Ref list(inputs);
        Entry* found = reinterpret_cast<Entry*>(entry.get());
        return inputs ? run(found, inputs) : PyObject_Call(held_by(found, FUNCTION), args, kwargs);
      }
      case STALE:  // no Python code has run since the entry was taken from place i
        if (PySequence_DelItem(entries.get(), i--) < 0) return nullptr;
        break;
      case FAILED:
        return nullptr;
      case OTHER:
        break;
    }
  }
  return PyObject_Call(call->fallback, args, kwargs);
}

PyObject* Call_add(PyObject* self, PyObject* args) {
  PyObject* entry;
  Py_ssize_t limit;
  if (!PyArg_ParseTuple(args, "O!n:add", entry_type, &entry, &limit)) return nullptr;
  PyObject* entries = reinterpret_cast<Call*>(self)->entries;
  if (PyList_Insert(entries, 0, entry) < 0) return nullptr;
  if (PyList_GET_SIZE(entries) > limit && PyList_SetSlice(entries, limit, PyList_GET_SIZE(entries), nullptr) < 0)
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* Call_forget(PyObject* self, PyObject*) {
  PyObject* entries = reinterpret_cast<Call*>(self)->entries;
  if (PyList_SetSlice(entries, 0, PyList_GET_SIZE(entries), nullptr) < 0) return nullptr;
  Py_RETURN_NONE;
}

Py_ssize_t Call_length(PyObject* self) { return PyList_GET_SIZE(reinterpret_cast<Call*>(self)->entries); }

int Call_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(reinterpret_cast<Call*>(self)->fallback);
  Py_VISIT(reinterpret_cast<Call*>(self)->entries);
  return 0;
}

int Call_clear(PyObject* self) {
  Py_CLEAR(reinterpret_cast<Call*>(self)->fallback);
  Py_CLEAR(reinterpret_cast<Call*>(self)->entries);
  return 0;
}

void Call_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  Call_clear(self);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef call_methods[] = {
    {"add", Call_add, METH_VARARGS, "add(entry, limit): try it first; keep at most `limit` entries."},
    {"forget", Call_forget, METH_NOARGS, "Drop all entries."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot call_slots[] = {
    {Py_tp_doc, const_cast<char*>("Call(fallback): a callable that serves what its entries hold for.")},
    {Py_tp_new, reinterpret_cast<void*>(Call_new)},
    {Py_tp_call, reinterpret_cast<void*>(Call_call)},
    {Py_tp_methods, call_methods},
    {Py_sq_length, reinterpret_cast<void*>(Call_length)},
    {Py_tp_traverse, reinterpret_cast<void*>(Call_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(Call_clear)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Call_dealloc)},
    {0, nullptr}};
PyType_Spec call_spec = {"wolong_direct_call.Call", sizeof(Call), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, call_slots};

// ---- the module

PyObject* read_tensors_at(PyObject*, PyObject* args) {
  PyObject* base;
  if (!PyArg_ParseTuple(args, "nO!:read_tensors_at", &tensor_offset, &PyType_Type, &base)) return nullptr;
  tensor_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(base));
  Py_RETURN_NONE;
}

// Writes the data addresses of a sequence of tensors; past the last written, or null with an exception set.
void** written(PyObject* tensors, void** at, void** end) {
  Ref sequence(PySequence_Fast(tensors, "tensors come in a sequence"));
  if (!sequence.get()) return nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence.get());
  if (count > end - at) {
    PyErr_SetString(PyExc_ValueError, "more tensors than a kernel takes");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* tensor = PySequence_Fast_GET_ITEM(sequence.get(), i);
    if (!PyObject_TypeCheck(tensor, tensor_type)) {
      PyErr_SetString(PyExc_ValueError, "a kernel takes tensors");
      return nullptr;
    }
    *at++ = tensor_in(tensor).data_ptr();
  }
  return at;
}

void** written_as_they_are(PyObject* addresses, void** at, void** end) {
  Ref sequence(PySequence_Fast(addresses, "addresses come in a sequence"));
  if (!sequence.get()) return nullptr;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(sequence.get()) && at < end; ++i)
    *at++ = PyLong_AsVoidPtr(PySequence_Fast_GET_ITEM(sequence.get(), i));
  return PyErr_Occurred() ? nullptr : at;
}

PyObject* write_addresses(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "write_addresses takes five arguments");
    return nullptr;
  }
  void** at = static_cast<void**>(PyLong_AsVoidPtr(args[0]));
  void** end = at + PyLong_AsSsize_t(args[1]);
  if (PyErr_Occurred()) return nullptr;
  try {
    if (!(at = written(args[2], at, end))) return nullptr;
    if (!(at = written_as_they_are(args[3], at, end))) return nullptr;
    if (!(at = written(args[4], at, end))) return nullptr;
  } catch (const std::exception& error) {  // a tensor without memory of its own
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  if (at != end) {
    PyErr_SetString(PyExc_ValueError, "fewer tensors than a kernel takes");
    return nullptr;
  }
  Py_RETURN_NONE;
}

struct Shape {
  at::ScalarType dtype;
  std::vector<int64_t> sizes, strides;
};
using Shapes = std::vector<Shape>;

// `self`: a capsule of Shapes
PyObject* new_tensors(PyObject* self, PyObject*) {
  const auto& shapes = *static_cast<const Shapes*>(PyCapsule_GetPointer(self, nullptr));
  Ref list(PyList_New(static_cast<Py_ssize_t>(shapes.size())));
  if (!list.get()) return nullptr;
  try {
    for (size_t i = 0; i < shapes.size(); ++i) {
      const auto& [dtype, sizes, strides] = shapes[i];
      PyObject* tensor = THPVariable_Wrap(at::detail::empty_strided_cpu(sizes, strides, dtype, false));
      if (!tensor) return nullptr;
      PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), tensor);
    }
  } catch (const std::exception& error) {  // no memory
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return list.release();
}

PyMethodDef new_tensors_method = {"new_tensors", new_tensors, METH_NOARGS,
                                  "new_tensors(): tensors on the CPU, their content undefined."};

PyObject* make_allocator(PyObject*, PyObject* templates) {
  if (!PyTuple_CheckExact(templates) || tensor_offset < 0) {
    PyErr_SetString(PyExc_TypeError, "make_allocator takes a tuple of tensors, after read_tensors_at");
    return nullptr;
  }
  Ref shapes(PyCapsule_New(new Shapes, nullptr, [](PyObject* capsule) {
    delete static_cast<Shapes*>(PyCapsule_GetPointer(capsule, nullptr));
  }));
  if (!shapes.get()) return nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(templates); ++i) {
    PyObject* object = PyTuple_GET_ITEM(templates, i);
    if (!PyObject_TypeCheck(object, tensor_type)) {
      PyErr_SetString(PyExc_TypeError, "make_allocator takes tensors");
      return nullptr;
    }
    const at::TensorBase& tensor = tensor_in(object);
    static_cast<Shapes*>(PyCapsule_GetPointer(shapes.get(), nullptr))
        ->push_back({tensor.scalar_type(), tensor.sizes().vec(), tensor.strides().vec()});
  }
  return PyCFunction_New(&new_tensors_method, shapes.get());
}

PyObject* newest(PyObject*, PyObject* dicts) {
  if (!PyTuple_CheckExact(dicts)) {
    PyErr_SetString(PyExc_TypeError, "newest takes a tuple of dictionaries");
    return nullptr;
  }
  uint64_t version = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); ++i)
    version = std::max(version, version_of(PyTuple_GET_ITEM(dicts, i)));
  return PyLong_FromUnsignedLongLong(version);
}

PyMethodDef functions[] = {
    {"read_tensors_at", read_tensors_at, METH_VARARGS,
     "read_tensors_at(offset, type): where in objects of this type and its subtypes their at::Tensor is."},
    {"write_addresses", reinterpret_cast<PyCFunction>(write_addresses), METH_FASTCALL,
     "write_addresses(to, count, tensors, addresses, tensors): write `count` addresses to address `to`."},
    {"make_allocator", make_allocator, METH_O,
     "make_allocator(templates): a function that returns a list of new tensors of such dtypes, sizes and strides."},
    {"newest", newest, METH_O, "newest(dicts): the latest of their version tags; each change of one raises it."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "wolong_direct_call", "Calls without Dynamo.", -1, functions};

}  // namespace

PyMODINIT_FUNC PyInit_wolong_direct_call() {
  Ref module(PyModule_Create(&definition));
  if (!module.get()) return nullptr;
  Ref entry(PyType_FromSpec(&entry_spec)), call(PyType_FromSpec(&call_spec));
  if (!entry.get() || !call.get()) return nullptr;
  if (PyModule_AddObjectRef(module.get(), "Entry", entry.get()) < 0) return nullptr;
  if (PyModule_AddObjectRef(module.get(), "Call", call.get()) < 0) return nullptr;
  entry_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(entry.get()));
  return module.release();
}
