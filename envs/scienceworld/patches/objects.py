"""Changes to `EnvObject`: its hash code, and sets of contents that are not copied again."""

from __future__ import annotations

from stepagent.envs.scienceworld.classfile import ClassFile
from stepagent.envs.scienceworld.patches.table import (
    ADD_ALL,
    MUTABLE_SET,
    OBJECT,
    PORTAL,
    SET,
)


def hash_by_uuid(cls: ClassFile) -> None:
    """`EnvObject` gets the hash code that belongs to its `equals`."""
    text = f"""
        aload this
        invokevirtual {OBJECT}.uuid ()J
        l2i
        ireturn
    """
    cls.add_method("hashCode", "()I", {"this": OBJECT}, text)


def _keep_contents(cls: ClassFile) -> None:
    """`getContainedObjects` and `getPortals` keep the copies that they return."""
    changes = {
        "containedObjects": [("addObject", 1), ("removeObjectFromContainer", 2)],
        "portals": [("addPortal", 1), ("removePortal", 2)],
    }
    arguments = {
        "addObject": f"(L{OBJECT};)V",
        "removeObjectFromContainer": f"(L{OBJECT};)Z",
        "addPortal": f"(L{PORTAL};)V",
        "removePortal": f"(L{PORTAL};)Z",
    }
    for contents, getter in (
        ("containedObjects", "getContainedObjects"),
        ("portals", "getPortals"),
    ):
        copy, variables = f"{contents}$copy", {"this": OBJECT, "hidden": "int", "copy": SET}
        cls.add_field(copy, f"L{SET};")
        cls.rename(getter, f"(Z)L{SET};", f"{getter}$plain")
        text = f"""
                iload hidden
                ifeq filtered
                aload this
                getfield {OBJECT}.{copy} L{SET};
                astore copy
                aload copy
                ifnonnull copied
            filtered: this hidden
                aload this
                iload hidden
                invokevirtual {OBJECT}.{getter}$plain (Z)L{SET};
                astore copy
                iload hidden
                ifeq copied
                aload this
                aload copy
                putfield {OBJECT}.{copy} L{SET};
            copied: this hidden copy
                aload copy
                areturn
        """
        cls.add_method(getter, f"(Z)L{SET};", variables, text)
        text = f"""
            aload this
            aconst_null
            putfield {OBJECT}.{copy} L{SET};
            aload this
            invokespecial {OBJECT}.{contents} ()L{MUTABLE_SET};
            areturn
        """
        signature = f"()L{MUTABLE_SET};"
        cls.add_method(f"{contents}$change", signature, {"this": OBJECT}, text)
        for method, calls in changes[contents]:
            old = f"{OBJECT}.{contents} {signature}"
            new = f"{OBJECT}.{contents}$change {signature}"
            cls.redirect(method, arguments[method], old, new, calls)


def _collect_once(cls: ClassFile) -> None:
    """`getContainedObjectsAndPortalsRecursive` collects into one set, not one per object.

    Four elements or fewer are listed in the order they were added, so that these sets come from the
    method as it was; larger sets are in the order of their hash codes.
    """
    name, set_ = "getContainedObjectsAndPortalsRecursive", "scala/collection/mutable/HashSet"
    cls.rename(name, f"(ZZ)L{SET};", f"{name}$plain")
    flags = {"hidden": "int", "connections": "int"}
    text = f"""
            new {set_}
            dup
            invokespecial {set_}.<init> ()V
            astore set
            aload this
            iload hidden
            iload connections
            aload set
            invokevirtual {OBJECT}.collect (ZZL{set_};)V
            aload set
            invokevirtual {set_}.size ()I
            iconst 4
            if_icmpgt many
            aload this
            iload hidden
            iload connections
            invokevirtual {OBJECT}.{name}$plain (ZZ)L{SET};
            areturn
        many: set
            aload set
            invokevirtual {set_}.toSet ()L{SET};
            areturn
    """
    cls.add_method(name, f"(ZZ)L{SET};", {"this": OBJECT, **flags, "set": set_}, text)
    iterator = "scala/collection/Iterator"
    variables = {
        "this": OBJECT,
        **flags,
        "set": set_,
        "iterator": iterator,
        "object": OBJECT,
        "portal": PORTAL,
    }
    text = f"""
            aload this
            iconst 1
            invokevirtual {OBJECT}.getContainedObjects (Z)L{SET};
            invokeinterface {SET}.iterator ()L{iterator};
            astore iterator
        objects: this hidden connections set iterator
            aload iterator
            invokeinterface {iterator}.hasNext ()Z
            ifeq portals
            aload iterator
            invokeinterface {iterator}.next ()Ljava/lang/Object;
            checkcast {OBJECT}
            astore object
            iload hidden
            ifne collect
            aload object
            invokevirtual {OBJECT}.isHidden ()Z
            ifne objects
        collect: this hidden connections set iterator object
            aload set
            aload object
            invokevirtual {set_}.add (Ljava/lang/Object;)Z
            pop
            aload object
            iload hidden
            iload connections
            aload set
            invokevirtual {OBJECT}.collect (ZZL{set_};)V
            goto objects
        portals: this hidden connections set
            aload this
            iconst 1
            invokevirtual {OBJECT}.getPortals (Z)L{SET};
            invokeinterface {SET}.iterator ()L{iterator};
            astore iterator
        doors: this hidden connections set iterator
            aload iterator
            invokeinterface {iterator}.hasNext ()Z
            ifeq done
            aload iterator
            invokeinterface {iterator}.next ()Ljava/lang/Object;
            checkcast {PORTAL}
            astore portal
            iload hidden
            ifne door
            aload portal
            invokevirtual {PORTAL}.isHidden ()Z
            ifne doors
        door: this hidden connections set iterator portal
            aload set
            aload portal
            invokevirtual {set_}.add (Ljava/lang/Object;)Z
            pop
            iload connections
            ifeq doors
            aload set
            aload portal
            invokevirtual {PORTAL}.getConnectionPoints ()L{SET};
            invokevirtual {set_}.$plus$plus$eq {ADD_ALL}
            pop
            goto doors
        done: this
            return
    """
    cls.add_method("collect", f"(ZZL{set_};)V", variables, text)


def change_objects(cls: ClassFile) -> None:
    hash_by_uuid(cls)
    _keep_contents(cls)
    _collect_once(cls)
