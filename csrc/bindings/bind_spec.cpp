// ModelSpec and its parts as Python classes with keyword-only constructors, derived from visit() in model/spec.h.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "core/error.h"
#include "model/spec.h"

namespace nb = nanobind;

namespace fastllm {
namespace {

// Collects the keywords of a constructor call into the fields; what is left over is refused by name.
struct KeywordReader {
  nb::kwargs& keywords;
  std::size_t taken = 0;
  std::string known;

  template <class Field>
  void operator()(const char* name, Field& field) {
    known += known.empty() ? name : std::string(", ") + name;
    if (!keywords.contains(name)) return;
    try {
      field = nb::cast<Field>(keywords[name]);
    } catch (const nb::cast_error&) {
      throw nb::type_error((std::string(name) + " has the wrong type").c_str());
    }
    ++taken;
  }
};

// Finds one field by name and hands out a copy of it.
struct FieldGetter {
  const std::string& wanted;
  nb::object found;

  template <class Field>
  void operator()(const char* name, Field& field) {
    if (wanted == name) found = nb::cast(field, nb::rv_policy::copy);
  }
};

template <class Spec>
void bind_struct(nb::module_& m, const char* name) {
  nb::class_<Spec> cls(m, name);
  cls.def("__init__", [name](Spec* self, nb::kwargs keywords) {
    Spec spec;
    KeywordReader reader{keywords, 0, {}};
    visit(reader, spec);
    if (reader.taken != keywords.size()) {
      throw nb::type_error((std::string(name) + ": unknown keyword; the fields are " + reader.known).c_str());
    }
    new (self) Spec(std::move(spec));
  });
  cls.def("__getattr__", [name](Spec& self, const std::string& field) {
    FieldGetter finder{field, {}};
    visit(finder, self);
    if (!finder.found.is_valid()) {
      throw nb::attribute_error((std::string(name) + " has no field " + field).c_str());
    }
    return finder.found;
  });
  cls.def("__repr__", [name](const Spec&) { return std::string("<") + name + ">"; });
}

}  // namespace

void bind_spec(nb::module_& m) {
  nb::enum_<Activation>(m, "Activation")
      .value("SILU", Activation::kSilu)
      .value("GELU_TANH", Activation::kGeluTanh)
      .value("CLAMPED_SWIGLU", Activation::kClampedSwiglu);
  nb::enum_<RouteScore>(m, "RouteScore")
      .value("SOFTMAX", RouteScore::kSoftmax)
      .value("SOFTMAX_OF_TOP_K", RouteScore::kSoftmaxOfTopK)
      .value("SIGMOID", RouteScore::kSigmoid);
  nb::enum_<QkNorm>(m, "QkNorm")
      .value("NONE", QkNorm::kNone)
      .value("PER_HEAD", QkNorm::kPerHead)
      .value("FULL", QkNorm::kFull);
  bind_struct<NormSpec>(m, "NormSpec");
  bind_struct<RopeSpec>(m, "RopeSpec");
  bind_struct<ActivationSpec>(m, "ActivationSpec");
  bind_struct<AttentionSpec>(m, "AttentionSpec");
  bind_struct<DenseFfnSpec>(m, "DenseFfnSpec");
  bind_struct<MoeSpec>(m, "MoeSpec");
  bind_struct<LayerSpec>(m, "LayerSpec");
  bind_struct<ModelSpec>(m, "ModelSpec");
}

}  // namespace fastllm
